import pytest
from hypothesis import settings

# Machines are shared and slow at times: what is slow is no failure, and every run tries the same.
settings.register_profile("aegis", deadline=None, derandomize=True)
settings.load_profile("aegis")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--rewrite-golden",
        action="store_true",
        help="write the files in tests/golden anew; read the difference before committing it",
    )


@pytest.fixture
def rewrite_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written instead of compared."""
    return bool(request.config.getoption("--rewrite-golden"))
