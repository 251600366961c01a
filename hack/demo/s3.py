"""Puts files into an S3-compatible store, and lists what is there.

export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...
python hack/demo/s3.py --endpoint http://localhost:9000 upload OUT s3://models/churn
python hack/demo/s3.py --endpoint http://localhost:9000 list s3://models/churn
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError


@dataclass(frozen=True)
class Object:
    """Something in a bucket: its key, and its size in bytes."""

    key: str
    size: int


class Store:
    """One S3-compatible endpoint."""

    def __init__(self, endpoint: str, access_key: str, secret_key: str) -> None:
        """
        Args:
            endpoint: the URL of the store, such as http://localhost:9000.
            access_key: the key's id.
            secret_key: the key itself.
        """
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=access_key,
            aws_secret_access_key=secret_key,
            region_name="us-east-1",
            # Stores other than Amazon's often know neither bucket names in the host name nor checksums in trailers.
            config=Config(
                s3={"addressing_style": "path"},
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
            ),
        )

    def upload(self, path: Path, bucket: str, prefix: str = "") -> list[str]:
        """Uploads a file, or all files below a directory, and makes the bucket if there is none.

        Args:
            path: the file or directory.
            bucket: the bucket's name.
            prefix: what the keys begin with; a file's own name, or its path below the directory, follows.

        Returns:
            The URLs, s3://BUCKET/KEY, in order.

        Raises:
            FileNotFoundError: there is no such file, or no file below the directory.
            botocore.exceptions.ClientError: the store refuses.
        """
        top = path if path.is_dir() else path.parent
        files = sorted(file for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())
        if not files:
            raise FileNotFoundError(f"there is nothing to upload at {path}")
        self._make_bucket(bucket)
        urls = []
        for file in files:
            key = "/".join(filter(None, [prefix.strip("/"), file.relative_to(top).as_posix()]))
            self._client.upload_file(str(file), bucket, key)
            urls.append(f"s3://{bucket}/{key}")
        return urls

    def objects(self, bucket: str, prefix: str = "") -> list[Object]:
        """What a bucket holds below a prefix, by key.

        Raises:
            botocore.exceptions.ClientError: there is no such bucket, or the store refuses.
        """
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return [Object(entry["Key"], entry["Size"]) for page in pages for entry in page.get("Contents", [])]

    def _make_bucket(self, bucket: str) -> None:
        try:
            self._client.head_bucket(Bucket=bucket)
        except ClientError as error:
            if error.response["Error"]["Code"] != "404":
                raise
            self._client.create_bucket(Bucket=bucket)


def location(url: str) -> tuple[str, str]:
    """Bucket and prefix of a URL such as s3://models/churn/2.

    Raises:
        ValueError: it is not of that form.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3" or not parts.netloc:
        raise ValueError(f"expected s3://BUCKET/PREFIX, not {url!r}")
    return parts.netloc, parts.path.strip("/")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--endpoint", required=True, help="URL of the store")
    commands = parser.add_subparsers(dest="command", required=True)
    upload = commands.add_parser("upload", help="upload a file or a directory")
    upload.add_argument("path", type=Path)
    upload.add_argument("url", type=location, metavar="s3://BUCKET/PREFIX")
    listing = commands.add_parser("list", help="list what is below a prefix")
    listing.add_argument("url", type=location, metavar="s3://BUCKET/PREFIX")
    options = parser.parse_args()
    try:
        keys = os.environ["AWS_ACCESS_KEY_ID"], os.environ["AWS_SECRET_ACCESS_KEY"]
    except KeyError as error:
        parser.error(f"{error.args[0]} is not set")
    store, (bucket, prefix) = Store(options.endpoint, *keys), options.url
    if options.command == "upload":
        print(*store.upload(options.path, bucket, prefix), sep="\n")
    else:
        print(*(f"{entry.size:>12} s3://{bucket}/{entry.key}" for entry in store.objects(bucket, prefix)), sep="\n")


if __name__ == "__main__":
    main()
