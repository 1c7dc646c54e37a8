"""A client for S3-compatible storage, by botocore, which is imported with the first. Leaves out what is kept there."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Bucket:
    """`endpoint` "" is Amazon's own; without an `access_key`, credentials are found as Amazon's SDKs find them."""

    name: str
    prefix: str = ""
    endpoint: str = ""
    region: str = ""
    access_key: str = ""
    secret_key: str = field(default="", repr=False)


def client(bucket: Bucket) -> Any:
    """Raises ImportError, and botocore's errors where what is given makes no client."""
    from botocore.config import Config
    from botocore.session import Session

    config = Config(
        signature_version="s3v4",
        connect_timeout=5,
        read_timeout=30,
        retries={"max_attempts": 2, "mode": "standard"},
        # What every storage understands: the bucket in the path, no checksums of newer SDKs, the body signed.
        s3={"addressing_style": "path" if bucket.endpoint else "auto", "payload_signing_enabled": True},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    return Session().create_client(
        "s3",
        endpoint_url=bucket.endpoint or None,
        region_name=bucket.region or "us-east-1",
        aws_access_key_id=bucket.access_key or None,
        aws_secret_access_key=bucket.secret_key or None,
        config=config,
    )
