"""The training loop and what it needs: schedules, records, stop requests."""
