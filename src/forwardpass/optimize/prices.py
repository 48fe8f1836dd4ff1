"""What computing costs: a dated table in the package, a file of the user's, or two numbers."""

from __future__ import annotations

import math
from datetime import date
from functools import cache
from importlib.resources import files
from pathlib import Path

import msgspec

from forwardpass.errors import InvalidOption

__all__ = ["DEFAULT_PRICES", "Prices", "age_warning", "checked", "known_prices", "load_prices"]

DEFAULT_PRICES = "aws-fargate"
MAX_AGE_MONTHS = 12
"""List prices of computing stand for years; a discount, another region or a new generation does not wait for that."""


class Prices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a row is charged with: the processors and the memory that it keeps busy, and a fee for the request.

    1 GB is 2**30 bytes. A platform that sells processors and memory in a fixed proportion (a function, a whole machine)
    has `gb_per_vcpu`, and charges for the greater of the two shares.
    """

    name: str = "custom"
    what: str = "prices of your own"
    region: str = ""
    as_of: str = ""
    """Year and month in which they were looked up, such as `2026-03`."""
    vcpu_hour_usd: float = 0.0
    gb_hour_usd: float = 0.0
    gb_per_vcpu: float = 0.0
    request_usd: float = 0.0
    billed_step_s: float = 0.0
    """The time of a request is rounded up to a multiple of this."""
    one_request_at_a_time: bool = False
    """Whether requests never share a call, so that only single rows count."""

    def usd_per_second(self, *, num_threads: int, memory_bytes: float) -> float:
        """Return the price of a second of so many threads and so much memory.

        >>> Prices(vcpu_hour_usd=3600.0).usd_per_second(num_threads=2, memory_bytes=0)
        2.0
        >>> machine = Prices(gb_hour_usd=3600.0, gb_per_vcpu=2.0)
        >>> [machine.usd_per_second(num_threads=1, memory_bytes=gb * 2**30) for gb in (1, 3)]
        [2.0, 3.0]
        """
        num_gb = max(memory_bytes / 2**30, num_threads * self.gb_per_vcpu)
        return (num_threads * self.vcpu_hour_usd + num_gb * self.gb_hour_usd) / 3600

    def row_usd(self, *, row_s: float, num_threads: int, memory_bytes: float) -> float:
        """Return the price of a row, a request of its own, that keeps so many threads and so much memory busy.

        >>> Prices(vcpu_hour_usd=3600.0, billed_step_s=0.5).row_usd(row_s=0.6, num_threads=1, memory_bytes=0)
        1.0
        """
        per_second = self.usd_per_second(num_threads=num_threads, memory_bytes=memory_bytes)
        billed_s = math.ceil(row_s / self.billed_step_s) * self.billed_step_s if self.billed_step_s else row_s
        return billed_s * per_second + self.request_usd

    def __str__(self) -> str:
        return ", ".join(part for part in (self.what, self.region, self.as_of and f"as of {self.as_of}") if part)


@cache
def known_prices() -> dict[str, Prices]:
    """Return the table of the package by name."""
    text = files("forwardpass.optimize").joinpath("prices.json").read_bytes()
    return {prices.name: prices for prices in msgspec.json.decode(text, type=list[Prices])}


def load_prices(name: str) -> Prices:
    """Return the prices of this name, or those in the JSON file of this path, an object with the fields of `Prices`.

    Raises:
        InvalidOption: there are none, or the file does not hold such an object.
    """
    known = known_prices()
    if name in known:
        return known[name]
    path = Path(name)
    if not path.is_file():
        raise InvalidOption(option="--prices", value=name, expected=f"one of {', '.join(known)}, or a JSON file")
    try:
        prices = msgspec.json.decode(path.read_bytes(), type=Prices)
    except (msgspec.DecodeError, OSError, UnicodeDecodeError) as error:
        expected = 'an object such as {"what": "our cluster", "vcpu_hour_usd": 0.03, "gb_hour_usd": 0.004}'
        raise InvalidOption(option="--prices", value=name, expected=f"{expected} ({error})") from error
    return checked(prices, option="--prices", value=name)


def checked(prices: Prices, *, option: str, value: str) -> Prices:
    """Return prices that can be computed with.

    Raises:
        InvalidOption: one is negative or no number, the date does not parse, or all are zero.
    """
    own = prices
    amounts = (own.vcpu_hour_usd, own.gb_hour_usd, own.gb_per_vcpu, own.request_usd, own.billed_step_s)
    if not all(math.isfinite(amount) and amount >= 0 for amount in amounts):
        raise InvalidOption(option=option, value=value, expected="prices of at least 0")
    if not (prices.vcpu_hour_usd or prices.gb_hour_usd):
        raise InvalidOption(option=option, value=value, expected="a price for processors, for memory, or for both")
    if prices.as_of and _month_of(prices.as_of) is None:
        raise InvalidOption(option=option, value=value, expected="'as_of' as year and month, such as 2026-03")
    return prices


def age_warning(prices: Prices, today: date) -> str:
    """Say that prices are old, or return the empty string."""
    month = _month_of(prices.as_of)
    if month is None:
        return ""
    age = (today.year - month.year) * 12 + today.month - month.month
    if age <= MAX_AGE_MONTHS:
        return ""
    return (
        f"The prices of {prices.what} were looked up {age} months ago ({prices.as_of}): check them, and give your own "
        "with --prices FILE or --vcpu-hour-usd and --gb-hour-usd."
    )


def _month_of(as_of: str) -> date | None:
    try:
        return date.fromisoformat(f"{as_of}-01")
    except ValueError:
        return None
