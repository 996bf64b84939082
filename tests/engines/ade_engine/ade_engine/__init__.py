"""The smallest engine that honours the default command line and writes its report as NDJSON on stderr."""
