"""The command line: one file a subject. Commands call use cases and print answers; none touches the schema."""
