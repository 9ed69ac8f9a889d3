"""What a user starts: the command line, the run's configuration, the flows, and the Prefect server they report to."""
