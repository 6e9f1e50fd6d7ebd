"""What npm may take while it installs for a sandbox: packages of the user's registries, and nothing else.

A package names others as it likes, in its dependencies or in a lock file of its own (`npm-shrinkwrap.json`):
from git, which would be run with all that the user's git may do; an archive or a directory on this disk,
which would be copied, or linked and made executable where it is; an address that only this machine can reach.

New releases of npm 11 have settings for most of this; npm 10, which goes with node 22, has none. So the
script goes before npm itself and stands in the two places through which all of it passes. An npm that has no
such places ends in an error, whatever it has installed.
"""

SCRIPT = b"""\
const refuse = (what) => {
  throw new Error(`a package wants another one from ${what}, which npm may not take here`);
};
const programs = require("node:child_process");
for (const name of ["exec", "execFile", "execFileSync", "execSync", "fork", "spawn", "spawnSync"])
  programs[name] = () => refuse("git");
const module_ = require("node:module");
module_.syncBuiltinESMExports();

// Whatever npm takes, it asks one function for: a name of a registry, or an address. An address counts when
// its host is a registry's, or one that a registry has its archives on.
const hosts = new Set();
const places = { git: "git", remote: "an address" };
const guarded = (get) => (spec, options) => {
  const source = get(spec, options);
  if (source.types.includes("version")) {
    const manifest = source.manifest;
    hosts.add(new URL(source.registry).host);
    source.manifest = async () => {
      const found = await manifest.call(source);
      hosts.add(new URL(found._resolved).host);
      return found;
    };
  } else if (!(source.types.includes("remote") && hosts.has(new URL(source.resolved).host)))
    refuse(`${places[source.types[0]] ?? "this disk"}: ${source.spec}`);
  return source;
};
// A directory is not fetched but linked, and its programs are made executable where it is.
const linked = { construct: (_, [{ realpath }]) => refuse(`this disk: ${realpath}`) };
const load = module_._load;
const watched = new Set();
const links = new WeakMap();
module_._load = function (request, ...more) {
  const found = load.call(this, request, ...more);
  if (request === "./fetcher.js" && found.get && !watched.has(found)) {
    found.get = guarded(found.get);
    watched.add(found).add("fetches");
  }
  if (found?.name !== "Link" || !request.endsWith("link.js")) return found;
  if (!links.has(found)) links.set(found, new Proxy(found, linked));
  watched.add("links");
  return links.get(found);
};
process.on("exit", (code) => {
  if (code || (watched.has("fetches") && watched.has("links"))) return;
  console.error("this npm is made in another way than those that Moat knows, and could not be watched");
  process.exitCode = 1;
});
"""
