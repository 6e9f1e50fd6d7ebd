"""Registries of container images: how one is asked, tokens for the password, logins found here."""
