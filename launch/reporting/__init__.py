"""The sections of a report, each a module that reads records and gives plain values for the page."""
