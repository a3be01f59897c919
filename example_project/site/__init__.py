"""The Django site: settings, views and one template."""
