"""Where credentials live: the OS keyring, or sealed files when the user chose them."""
