"""Files of recorded runs, written by hand, and what becomes of them."""

import json
from pathlib import Path

import pytest

from starpo_trace.convert.dataset import convert_sources


@pytest.fixture
def convert(tmp_path):
    """Name in a folder -> value, or text -> the conversion of that folder, which always closes."""

    def convert_files(files, *sources):
        for name, value in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(value, bytes):
                path.write_bytes(value)
            else:
                path.write_text(value if isinstance(value, str) else json.dumps(value))
        conversion = convert_sources([tmp_path / each for each in sources] or [tmp_path])
        assert conversion.accounting.is_closed
        return conversion

    return convert_files


@pytest.fixture
def reasons():
    """Conversion -> reason and detail of everything that was rejected."""

    def list_reasons(conversion):
        return conversion.tables["rejected"].select("name", "reason", "detail").rows()

    return list_reasons


@pytest.fixture(scope="session")
def shared_data():
    """Folder of real runs."""
    return Path(__file__).parents[4] / "shared" / "data"
