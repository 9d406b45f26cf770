"""A reward model over HTTP (extra ``serve``)."""

from pal.errors import ConfigError

try:
    import fastapi
    import prometheus_client
    import uvicorn
except ImportError as error:
    raise ConfigError(
        "pal serve needs FastAPI and uvicorn; install the extra: pip install 'pal-heads[serve]'"
    ) from error

assert fastapi
assert prometheus_client
assert uvicorn
