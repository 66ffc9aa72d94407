"""Fixtures shared by every test: temporary run directories and real Redis and Kafka servers."""
