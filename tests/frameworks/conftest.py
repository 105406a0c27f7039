"""Which cells of the table of frameworks a test is about; what came out is written for the table."""

import pytest


def pytest_configure(config):
    config.addinivalue_line("markers", "cell(*names): columns of the table of frameworks")
