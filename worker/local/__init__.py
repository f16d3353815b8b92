"""What `postage up` starts on this machine beside the worker: a broker, and receivers for what is sent."""
