"""What a type checker must know of the cache."""

from __future__ import annotations

from typing import assert_type

from django.core.cache.backends.base import BaseCache

from resty_upstream.contrib.django.cache import RedisCache


def use(cache: RedisCache) -> BaseCache:
    assert_type(cache.has_key("key"), bool)
    return cache
