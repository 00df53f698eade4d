#!/usr/bin/env bash
# Installs one vehicle on this machine: packages in an environment that sees the system's (a Jetson's OpenCV has
# GStreamer, which pip's lacks), the service's user, and the systemd unit. Run it as root in a checkout; running it
# again updates.
#
#   deploy/install-vehicle.sh                                        what is missing comes from pip, for the CPU
#   deploy/install-vehicle.sh --onnxruntime onnxruntime_gpu-….whl    a Jetson: NVIDIA's wheel, or your own build
#
# pip takes its index from its own settings (PIP_INDEX_URL, PIP_EXTRA_INDEX_URL, pip.conf).
set -euo pipefail

usage() {
  cat <<TEXT
usage: deploy/install-vehicle.sh [--prefix DIR] [--python PROGRAM] [--onnxruntime WHEEL|REQUIREMENT] [--no-service]

  --prefix DIR       where to install (default /opt/blackfleet; the unit expects it there)
  --python PROGRAM   the Python to make the environment with (default python3), 3.10 or newer
  --onnxruntime X    what pip installs as ONNX Runtime (default: the system's if there is one, else the CPU's)
  --no-service       neither user nor unit: the environment alone
TEXT
}

fail() {
  echo "install-vehicle: $1" >&2
  exit 2
}

prefix=/opt/blackfleet
python=python3
onnxruntime=
service=yes
while [ $# -gt 0 ]; do
  case $1 in
    --prefix | --python | --onnxruntime)
      [ $# -ge 2 ] || fail "$1 needs a value"
      case $1 in
        --prefix) prefix=$2 ;;
        --python) python=$2 ;;
        --onnxruntime) onnxruntime=$2 ;;
      esac
      shift 2
      ;;
    --no-service) service=no && shift ;;
    -h | --help) usage && exit 0 ;;
    *) usage >&2 && fail "$1 is not an option" ;;
  esac
done

checkout=$(cd "$(dirname "$0")/.." && pwd)
[ -f "$checkout/pyproject.toml" ] || fail "$checkout is no checkout of blackfleet: pyproject.toml is missing"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
  fail "$python is not Python 3.10 or newer; name another with --python"
"$python" -c 'import ensurepip, venv' 2>/dev/null || fail "$python can't make environments: apt-get install python3-venv"
[ $service = no ] || [ "$(id -u)" = 0 ] || fail "users and units need root: run it with sudo, or with --no-service"

mkdir -p "$prefix/docs"
[ -x "$prefix/.venv/bin/python" ] || "$python" -m venv --system-site-packages "$prefix/.venv"
inside=$prefix/.venv/bin/python

# pip leaves a build folder in what it installs: it gets a copy.
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
for name in pyproject.toml README.md LICENSE constraints.txt protocol datasets evaluation edge_client cloud_server fleet; do
  cp -r "$checkout/$name" "$copy/"
done

imports() { ORT_DISABLE_TELEMETRY=1 "$inside" -c "import $1" >/dev/null 2>&1; }
pip_install() { "$inside" -m pip install --quiet "$@"; }

constraints=$copy/constraints.txt
pip_install -c "$constraints" msgspec paho-mqtt
if ! imports cv2; then
  if "$inside" -c 'import importlib.util as u, sys; sys.exit(u.find_spec("cv2") is None)'; then
    # The system's OpenCV is built against numpy 1.
    pip_install 'numpy<2'
    imports cv2 || fail "the system's OpenCV can't be imported, with numpy 1 neither: $inside -c 'import cv2' says why"
  else
    pip_install -c "$constraints" opencv-python-headless
  fi
fi
pip_install --no-deps --force-reinstall "$copy"
imports numpy || pip_install -c "$constraints" numpy
if [ -n "$onnxruntime" ]; then
  pip_install "$onnxruntime"
elif ! imports onnxruntime; then
  pip_install -c "$constraints" onnxruntime
fi
imports "edge_client.command, onnxruntime, cv2, numpy" ||
  fail "the vehicle can't be imported: $inside -m edge_client --help says why"
cp "$checkout/docs/deployment.md" "$prefix/docs/"

if [ $service = yes ]; then
  for group in video render; do
    getent group "$group" >/dev/null || groupadd --system "$group"
  done
  getent passwd blackfleet >/dev/null ||
    useradd --system --user-group --home-dir /var/lib/blackfleet --no-create-home --shell /usr/sbin/nologin blackfleet
  usermod --append --groups video,render blackfleet
  install -d -m 0750 -g blackfleet /etc/blackfleet
  [ -e /etc/blackfleet/vehicle.env ] || install -m 0600 "$checkout/deploy/vehicle.env" /etc/blackfleet/
  sed "s|/opt/blackfleet|$prefix|g" "$checkout/deploy/blackfleet-vehicle.service" >/etc/systemd/system/blackfleet-vehicle.service
  if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
fi

ORT_DISABLE_TELEMETRY=1 "$inside" - <<'PROGRAM'
import cv2, numpy, onnxruntime, platform
gstreamer = "with" if "GStreamer:                   YES" in cv2.getBuildInformation() else "without"
print(f"Python {platform.python_version()}, numpy {numpy.__version__}, OpenCV {cv2.__version__} {gstreamer} GStreamer,")
print(f"ONNX Runtime {onnxruntime.__version__} with {', '.join(onnxruntime.get_available_providers())}")
PROGRAM
echo "installed to $prefix"
if [ $service = yes ]; then
  echo "next: edit /etc/blackfleet/vehicle.env, then: systemctl enable --now blackfleet-vehicle"
fi
