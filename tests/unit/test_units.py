import contextlib

import pytest
from hypothesis import given, strategies as st

from aegis_pipe.units import (
    MAX_RATE_PER_S,
    MAX_WHOLE,
    exact_size,
    format_duration,
    format_rate,
    parse_duration,
    parse_rate,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0 B", 0),
        ("1 B", 1),
        ("512 MiB", 512 * 2**20),
        ("1.5 GiB", 3 * 2**29),
        ("1.5 kB", 1500),
        ("2 MB", 2_000_000),
        ("3 GB", 3_000_000_000),
        ("4KiB", 4096),
        (" 4  KiB ", 4096),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    ("text", "duration_ns"),
    [
        ("0 ms", 0),
        ("7 ns", 7),
        ("0.1 ms", 100_000),
        ("1.5 us", 1500),
        ("20 ms", 20_000_000),
        ("5 s", 5_000_000_000),
        ("2 min", 120_000_000_000),
        ("1 h", 3_600_000_000_000),
    ],
)
def test_durations(text: str, duration_ns: int) -> None:
    assert parse_duration(text) == duration_ns


@pytest.mark.parametrize(
    ("text", "rate_per_s"),
    [("30/s", 30.0), ("30 /s", 30.0), ("6/min", 0.1), ("2/ms", 2000.0), ("29.97/s", 29.97)],
)
def test_rates(text: str, rate_per_s: float) -> None:
    assert parse_rate(text) == rate_per_s


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", 'expected a size such as "512 MiB", found an empty string'),
        ("  ", 'expected a size such as "512 MiB", found an empty string'),
        ("512", '"512" has no unit; expected a size such as "512 MiB"'),
        ("nan MiB", 'expected a size such as "512 MiB", found "nan MiB"'),
        ("inf", 'expected a size such as "512 MiB", found "inf"'),
        ("1e3 MiB", '"1e3 MiB": unknown unit `e3 MiB`; did you mean `MiB`?'),
        ("-1 MiB", 'a size can not be negative, found "-1 MiB"'),
        ("64 mib", '"64 mib": unknown unit `mib`; did you mean `MiB`?'),
        ("64 M", '"64 M": unknown unit `M`; did you mean `MiB`?'),
        ("64 Mb", '"64 Mb": unknown unit `Mb`; did you mean `MB`?'),
        (
            "64 ms",
            '"64 ms": unknown unit `ms`; units are B, kB, MB, GB, KiB, MiB, GiB',
        ),
        ("0.3 B", '"0.3 B" is not a whole number of bytes'),
        ("99999999999 GiB", '"99999999999 GiB" is too large; the limit is 2^63 - 1 bytes'),
    ],
)
def test_sizes_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_size(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("20", '"20" has no unit; expected a duration such as "20 ms"'),
        ("20 msec", '"20 msec": unknown unit `msec`; did you mean `ms`?'),
        ("20 m", '"20 m": unknown unit `m`; did you mean `min`?'),
        ("20 \N{MICRO SIGN}s", '"20 µs": unknown unit `µs`; did you mean `us`?'),
        ("20 S", '"20 S": unknown unit `S`; did you mean `s`?'),
        ("0.5 ns", '"0.5 ns" is not a whole number of nanoseconds'),
        ("-20 ms", 'a duration can not be negative, found "-20 ms"'),
        ("\N{ARABIC-INDIC DIGIT THREE} ms", 'expected a duration such as "20 ms", found "٣ ms"'),
    ],
)
def test_durations_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_duration(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("30", '"30" has no unit; expected a rate such as "30/s"'),
        ("30 fps", '"30 fps": unknown unit `fps`; did you mean `/s`?'),
        ("30 Hz", '"30 Hz": unknown unit `Hz`; did you mean `/s`?'),
        ("0/s", 'a rate must be above zero, found "0/s"'),
        ("10000000/ms", '"10000000/ms" is too fast; the limit is 1000000000/s'),
    ],
)
def test_rates_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_rate(text)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "value"),
    [("512 MiB", 512 * 2**20), ("1000 B", 1000), ("3 KiB", 3072), ("0 B", 0), ("2048 GiB", 2**41)],
)
def test_exact_size(text: str, value: int) -> None:
    assert exact_size(value) == text


@pytest.mark.parametrize(
    ("text", "value"),
    [("20 ms", 20_000_000), ("0 ms", 0), ("90 s", 90 * 10**9), ("1 h", 3600 * 10**9), ("7 ns", 7)],
)
def test_format_duration(text: str, value: int) -> None:
    assert format_duration(value) == text


@pytest.mark.parametrize("text", ["30/s", "10/min", "29.97/s", "1/h", "1500/s"])
def test_format_rate(text: str) -> None:
    assert format_rate(parse_rate(text)) == text


@given(st.integers(0, MAX_WHOLE))
def test_whole_values_round_trip(value: int) -> None:
    assert parse_size(exact_size(value)) == value
    assert parse_duration(format_duration(value)) == value


@given(st.floats(min_value=0, max_value=MAX_RATE_PER_S, exclude_min=True))
def test_rates_round_trip(rate_per_s: float) -> None:
    assert parse_rate(format_rate(rate_per_s)) == rate_per_s


@given(st.text(max_size=12))
def test_any_other_text_is_a_value_error_and_nothing_else(text: str) -> None:
    for parse in (parse_size, parse_duration, parse_rate):
        with contextlib.suppress(ValueError):
            assert parse(text) >= 0
