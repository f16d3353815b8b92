"""The gate: the process and everything outside the walls (settings, broker, carriers, command line)."""
