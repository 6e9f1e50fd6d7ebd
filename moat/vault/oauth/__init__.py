"""Logins to MCP servers: found out, made in the browser, kept alive (`oauth:NAME` grants)."""
