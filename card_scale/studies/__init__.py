"""Studies: one YAML grid, its plan and costs, its runs on this machine or on Slurm, one result table, a report."""
