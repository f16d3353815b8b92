"""What is read from the rest: views, usage, the state of jobs, and audits of the money."""
