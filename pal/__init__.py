"""Plural preferences from frozen features: encode once, train light PAL heads many times.

``pal.pipeline`` holds the stages as functions; the folders hold their parts: ``pal.data``,
``pal.embed``, ``pal.cache``, ``pal.train``, ``pal.evaluate``, ``pal.reward``.
"""

__version__ = "0.1.0"
