#!/usr/bin/env python
"""Django's command line for the example project: `python example_project/manage.py check`."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    # Python puts this file's directory first, where `site` would hide the standard library's module.
    here = Path(__file__).resolve().parent
    sys.path[:] = [str(here.parent), *(entry for entry in sys.path if Path(entry).resolve() != here)]
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "example_project.site.settings")
    from django.core.management import execute_from_command_line

    execute_from_command_line(sys.argv)


if __name__ == "__main__":
    main()
