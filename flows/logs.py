"""What of Prefect's own logging is left out; imported by logging.yml while Prefect is, and so imports nothing itself."""

import logging


class Unusual(logging.Filter):
    """Leaves out what Prefect says at the end of every task run that went well: one or more lines an image."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is worth a line in the Prefect UI."""
        routine = record.name == "prefect.task_runs" and record.levelno == logging.INFO
        return not (routine and record.getMessage().startswith("Finished in state Completed"))
