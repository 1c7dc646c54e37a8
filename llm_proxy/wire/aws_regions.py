"""Where AWS has Bedrock: regions and the hosts of its two services. Facts of a day; no request is made to learn them.

A region that is newer than the table is taken where an endpoint is named beside it.
"""

from __future__ import annotations

import re

AS_OF = "2026-11"  # from AWS's endpoint data, botocore 1.44

# By partition: the domain its hosts end in.
_DOMAINS = {
    "amazonaws.com": (
        "af-south-1 ap-east-2 ap-northeast-1 ap-northeast-2 ap-northeast-3 ap-south-1 ap-south-2 ap-southeast-1 "
        "ap-southeast-2 ap-southeast-3 ap-southeast-4 ap-southeast-5 ap-southeast-6 ap-southeast-7 ca-central-1 "
        "ca-west-1 eu-central-1 eu-central-2 eu-north-1 eu-south-1 eu-south-2 eu-west-1 eu-west-2 eu-west-3 "
        "il-central-1 me-central-1 me-south-1 mx-central-1 sa-east-1 us-east-1 us-east-2 us-west-1 us-west-2 "
        "us-gov-east-1 us-gov-west-1"
    ),
    "amazonaws.eu": "eusc-de-east-1",
    "c2s.ic.gov": "us-iso-east-1",
    "sc2s.sgov.gov": "us-isob-east-1",
    "csp.hci.ic.gov": "us-isof-east-1 us-isof-south-1",
}
REGIONS = {region: domain for domain, regions in _DOMAINS.items() for region in regions.split()}

WELL_FORMED = re.compile(r"[a-z]{2,8}(?:-[a-z]{2,12}){1,3}-[0-9]{1,2}")


def nearest(region: str) -> str:
    """The region that was most likely meant."""
    from difflib import get_close_matches

    return get_close_matches(region, REGIONS, 1, cutoff=0.0)[0]


def runtime_host(region: str) -> str:
    """Where models are called."""
    return f"bedrock-runtime.{region}.{REGIONS[region]}"


def control_host(region: str) -> str:
    """Where models and inference profiles are listed."""
    return f"bedrock.{region}.{REGIONS[region]}"
