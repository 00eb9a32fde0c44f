"""Fault-injection tests, a file per kind of fault; run.py is the command."""
