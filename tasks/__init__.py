"""The hall: one thin module per kind of job. A use case is one plain function; its Celery task is a doorstep."""
