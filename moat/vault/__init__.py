"""Where credentials live: the OS keyring, or sealed files when the user chose them.

`open_vault` touches neither keyring nor cryptography; listing needs the index alone. The first read
or write of a secret opens the store that holds it.
"""

from moat.vault.store import Vault, open_vault

__all__ = ["Vault", "open_vault"]
