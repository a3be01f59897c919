"""Gunicorn for the example: `gunicorn -c example_project/gunicorn_conf.py`."""

wsgi_app = "example_project.site.wsgi:application"
bind = "127.0.0.1:8000"
# Two processes, so that it shows that they share what they know; threads as most sites have them.
workers = 2
worker_class = "gthread"
threads = 4
graceful_timeout = 3
# Its place is one file for each user: several copies of the example would meet there.
control_socket_disable = True
