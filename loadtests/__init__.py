"""Measures the service from outside: `python -m loadtests.bench`, and a Locust scenario. Neither is installed with Longwave."""
