"""Real servers on this machine, for tests, benchmarks and demonstrations. Nothing is loaded until used."""
