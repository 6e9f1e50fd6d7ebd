"""Configuration: `agent.yaml` of a workspace and `~/.moat/config.yaml` of the user.

    config = load(workspace)        # RunConfig
    user = load_user(home)          # UserConfig

Both raise ConfigError with every problem of the file at once, each as `file:line:col: text`.
`parse_mount` reads one `src:dst[:ro|rw]`, `parse_host` one host pattern, `parse_port` one endpoint,
for flags.
"""

from moat.config.ask import AskConfig
from moat.config.budget import BudgetConfig
from moat.config.claude import ClaudeConfig
from moat.config.endpoints import EndpointsConfig
from moat.config.image import ContainerConfig, HooksConfig, ServiceConfig, VolumeConfig
from moat.config.local_mcp import LocalMcpServer
from moat.config.mcp import WELL_KNOWN, McpServer, check_url
from moat.config.model import MountConfig, RunConfig, UpstreamConfig, UserConfig
from moat.config.mounts import parse_mount
from moat.config.network import HostRules, NetworkConfig, parse_host
from moat.config.plugins import Marketplace, PluginsConfig
from moat.config.ports import check_port, parse_port
from moat.config.snapshots import SnapshotConfig
from moat.config.user import load_user
from moat.config.workspace import load, load_file

__all__ = [
    "WELL_KNOWN",
    "AskConfig",
    "BudgetConfig",
    "ClaudeConfig",
    "ContainerConfig",
    "EndpointsConfig",
    "HooksConfig",
    "HostRules",
    "LocalMcpServer",
    "Marketplace",
    "McpServer",
    "MountConfig",
    "NetworkConfig",
    "PluginsConfig",
    "RunConfig",
    "ServiceConfig",
    "SnapshotConfig",
    "UpstreamConfig",
    "UserConfig",
    "VolumeConfig",
    "check_port",
    "check_url",
    "load",
    "load_file",
    "load_user",
    "parse_host",
    "parse_mount",
    "parse_port",
]
