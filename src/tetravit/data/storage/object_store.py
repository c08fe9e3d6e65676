"""Buckets of S3, Google Cloud and Azure, through obstore (extra `remote`): s3://bucket/x, gs://bucket/x, az://box/x.

Credentials, regions and endpoints come from environment variables, as in obstore: AWS_ACCESS_KEY_ID,
AWS_ENDPOINT_URL, GOOGLE_APPLICATION_CREDENTIALS, GOOGLE_BASE_URL, AZURE_STORAGE_ACCOUNT_NAME, AZURE_STORAGE_ENDPOINT,
... ALLOW_HTTP=true allows an endpoint without TLS.
"""

import importlib
import io
import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, BinaryIO, TypeVar
from urllib.parse import urlsplit

from tetravit.data.storage.base import TRIES, Entry, Stat, Storage

Result = TypeVar("Result")
METADATA = "169.254.169.254"  # metadata server for credentials on cloud machines
_stores: dict[tuple[int, str], Any] = {}  # per process and bucket


class ObjectStore(Storage):
    """Objects in buckets. A folder is a common prefix that ends with `/`."""

    def list(self, folder: str) -> list[Entry]:
        store, prefix = _store(folder)
        prefix = f"{prefix.rstrip('/')}/" if prefix else ""
        listed = _called(lambda: _obstore().list_with_delimiter(store, prefix or None), folder)
        folders = [
            Entry(str(name).rstrip("/").rpartition("/")[2], True) for name in listed["common_prefixes"]
        ]
        files = [Entry(str(row["path"]).rpartition("/")[2], False) for row in listed["objects"]]
        if not folders and not files:
            raise FileNotFoundError(2, "No such folder", folder)
        return folders + files

    def open(self, file: str) -> BinaryIO:
        return io.BytesIO(self.read(file))

    def read(self, file: str) -> bytes:
        store, path = _store(file)
        return _called(lambda: bytes(_obstore().get(store, path).bytes()), file)

    def read_range(self, file: str, offset: int, size: int) -> bytes:
        store, path = _store(file)
        return _called(lambda: bytes(_obstore().get_range(store, path, start=offset, length=size)), file)

    def stat(self, path: str) -> Stat:
        store, name = _store(path)
        try:
            row = _called(lambda: _obstore().head(store, name), path)
            return Stat(int(row["size"]), row["last_modified"].timestamp(), False)
        except FileNotFoundError:
            self.list(path)  # raises if it is not a folder
            return Stat(0, 0.0, True)


def _obstore() -> Any:
    try:
        return importlib.import_module("obstore")
    except ImportError:
        raise ValueError(
            "Buckets are read through the package obstore: pip install 'tetravit[remote]'."
        ) from None


def _store(path: str) -> tuple[Any, str]:
    """The store of a bucket, created once per process, and the path inside it."""
    parts = urlsplit(path)
    key = (os.getpid(), f"{parts.scheme}://{parts.netloc}")
    if key not in _stores:
        _obstore()
        seconds = timedelta(seconds=TRIES.seconds)
        client: dict[str, Any] = {"timeout": seconds, "connect_timeout": seconds}
        if os.environ.get("AWS_ALLOW_HTTP", os.environ.get("ALLOW_HTTP", "")).lower() in ("1", "true"):
            client["allow_http"] = True
        from_url = importlib.import_module("obstore.store").from_url
        retries = {"max_retries": 0, "retry_timeout": seconds}  # `with_tries` tries again
        _stores[key] = _called(lambda: from_url(key[1], client_options=client, retry_config=retries), path)
    return _stores[key], parts.path.lstrip("/")


def _called(function: Callable[[], Result], path: str) -> Result:
    """The result of an obstore call; its errors are converted to OSError."""
    try:
        return function()
    except FileNotFoundError:
        raise FileNotFoundError(2, "No such file", path) from None
    except (ValueError, PermissionError, TimeoutError):
        raise
    except Exception as error:
        text = " ".join(str(error).split("Debug source")[0].split())
        name = type(error).__name__
        if name == "NotFoundError":
            raise FileNotFoundError(2, "No such file", path) from None
        if name in ("PermissionDeniedError", "UnauthenticatedError"):
            raise PermissionError(13, "Permission denied", path) from None
        if "timed out" in text or "timeout" in text.lower():
            raise TimeoutError from error
        if METADATA in text:  # tried last by obstore
            raise OSError(
                "no credentials in the environment, and this is no machine of that cloud"
            ) from error
        raise OSError(text[:200]) from error


STORAGE = dict.fromkeys(("s3", "gs", "az", "abfs", "abfss"), ObjectStore)
