# What the scripts share: each function makes sure that one thing is there, and installs or names it.

# Runs a command as root where that is possible without a question.
as_root() {
  if [ "$(id -u)" = 0 ]; then "$@"; else sudo -n "$@"; fi
}

# Installs Debian packages; elsewhere says which are needed.
install() {
  if ! command -v apt-get >/dev/null; then
    echo "please install: $*" >&2
    return 1
  fi
  as_root apt-get update -qq
  DEBIAN_FRONTEND=noninteractive as_root apt-get install -y -qq --no-install-recommends "$@" >/dev/null
}

# need COMMAND PACKAGE: installs the package where there is no such command. A command that came from elsewhere is as
# good as the package's.
need() {
  command -v "$1" >/dev/null || install "$2"
}

# Python with what makes virtual environments, which Debian keeps in a package of its own.
need_python() {
  need python3 python3
  python3 -c 'import ensurepip, venv' 2>/dev/null || install python3-venv
}

need_cargo() {
  if ! command -v cargo >/dev/null && [ -f "$HOME/.cargo/env" ]; then . "$HOME/.cargo/env"; fi
  if ! command -v cargo >/dev/null; then
    echo "easel is written in Rust: install it from https://rustup.rs and run this again" >&2
    exit 1
  fi
}

need_c_compiler() {
  need cc build-essential
  need c++ build-essential
}
