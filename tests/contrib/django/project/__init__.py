"""A Django site that tells a journal what happens in it, and does all that is hard for `post_process`."""
