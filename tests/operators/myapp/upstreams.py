"""The upstreams of the application."""

from resty_upstream import Upstreams

upstreams = Upstreams("upstreams.toml")
