# Sourced by init-image/build and daemonset/images/build: what an image takes where there is no
# container engine.
set -euo pipefail
export LC_ALL=C TZ=UTC
umask 022

# For whatever is made on the way; the image's files go below $work/root.
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir "$work/root"

fail() { printf 'error: %s\n' "$1" >&2; exit 64; }
digest() { sha256sum "$1" | cut -d ' ' -f 1; }
size() { stat -c %s "$1"; }

# check_name NAME:TAG
check_name() {
  [[ $1 =~ ^[a-z0-9][a-z0-9._/:-]*:[A-Za-z0-9_][A-Za-z0-9._-]*$ ]] || fail "\`$1\` is no NAME:TAG"
}

# choose_target DIRECTORY
# Sets epoch from SOURCE_DATE_EPOCH; arch, machine and target from ARCH and TARGET; and the linker that
# cargo takes for another machine. The directory's Rust is meant.
choose_target() {
  epoch=${SOURCE_DATE_EPOCH:-0}
  [[ $epoch =~ ^[0-9]+$ ]] || fail "SOURCE_DATE_EPOCH is no number of seconds"
  arch=${ARCH:-amd64}
  case $arch in
    amd64) machine=x86_64 ;;
    arm64) machine=aarch64 ;;
    *) fail "ARCH is amd64 or arm64" ;;
  esac
  target=${TARGET:-$machine-unknown-linux-gnu}
  [ "${target%%-*}" = "$machine" ] || fail "TARGET $target is not for ARCH $arch"
  [ -d "$(cd "$1" && rustc --print target-libdir --target "$target")" ] \
    || fail "Rust's $target is not installed: rustup target add $target"
  if [ "$machine" != "$(uname -m)" ]; then
    command -v "$machine-linux-gnu-gcc" >/dev/null \
      || fail "no linker for $machine: apt-get install gcc-${machine//_/-}-linux-gnu"
    local linker
    linker=CARGO_TARGET_$(tr 'a-z-' 'A-Z_' <<<"$target")_LINKER
    export "$linker=$machine-linux-gnu-gcc"
  fi
}

# A tar of what is in a directory, the same wherever and whenever it is written.
# pack DIRECTORY ENTRY...
pack() { tar --create --format=ustar --sort=name --mtime="@$epoch" --owner=0 --group=0 --numeric-owner -C "$1" "${@:2}"; }

# Writes the archive of an image with one layer, and says what it wrote.
# write_image OUT NAME:TAG TITLE VERSION CREATED_BY USER
#   TITLE  what the image is called, and the one binary in it
#   USER   as UID:GID
write_image() {
  local out=$1 name=$2 title=$3 version=$4 by=$5 user=$6
  local tag=${name##*:} blobs=$work/image/blobs/sha256
  mkdir -p "$blobs"
  # Moves a file among the blobs and prints its digest.
  blob() { local sum; sum=$(digest "$1"); mv "$1" "$blobs/$sum"; printf %s "$sum"; }

  local entries diff_id layer_size layer
  mapfile -t entries < <(cd "$work/root" && printf '%s\n' *)
  pack "$work/root" "${entries[@]}" >"$work/layer.tar"
  diff_id=$(digest "$work/layer.tar")
  gzip -n -9 <"$work/layer.tar" >"$work/layer.tar.gz"
  layer_size=$(size "$work/layer.tar.gz")
  layer=$(blob "$work/layer.tar.gz")

  local created config_size config
  created=$(date -u -d "@$epoch" +%Y-%m-%dT%H:%M:%SZ)
  printf '{"architecture":"%s","os":"linux","created":"%s","config":{"User":"%s","Entrypoint":["/%s"],"WorkingDir":"/","Labels":{"org.opencontainers.image.title":"%s","org.opencontainers.image.version":"%s","org.opencontainers.image.licenses":"Apache-2.0"}},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]},"history":[{"created":"%s","created_by":"%s"}]}' \
    "$arch" "$created" "$user" "$title" "$title" "$version" "$diff_id" "$created" "$by" >"$work/config.json"
  config_size=$(size "$work/config.json")
  config=$(blob "$work/config.json")

  local type=application/vnd.oci.image manifest_size manifest
  printf '{"schemaVersion":2,"mediaType":"%s.manifest.v1+json","config":{"mediaType":"%s.config.v1+json","digest":"sha256:%s","size":%s},"layers":[{"mediaType":"%s.layer.v1.tar+gzip","digest":"sha256:%s","size":%s}]}' \
    "$type" "$type" "$config" "$config_size" "$type" "$layer" "$layer_size" >"$work/manifest.json"
  manifest_size=$(size "$work/manifest.json")
  manifest=$(blob "$work/manifest.json")

  printf '{"imageLayoutVersion":"1.0.0"}' >"$work/image/oci-layout"
  printf '{"schemaVersion":2,"mediaType":"%s.index.v1+json","manifests":[{"mediaType":"%s.manifest.v1+json","digest":"sha256:%s","size":%s,"platform":{"architecture":"%s","os":"linux"},"annotations":{"io.containerd.image.name":"%s","org.opencontainers.image.ref.name":"%s"}}]}' \
    "$type" "$type" "$manifest" "$manifest_size" "$arch" "$name" "$tag" >"$work/image/index.json"
  # What `docker load` of before OCI layouts reads.
  printf '[{"Config":"blobs/sha256/%s","RepoTags":["%s"],"Layers":["blobs/sha256/%s"]}]' "$config" "$name" "$layer" \
    >"$work/image/manifest.json"

  find "$work/image" -type f -exec chmod 644 {} + -o -type d -exec chmod 755 {} +
  pack "$work/image" oci-layout index.json manifest.json blobs >"$work/out.tar"
  mkdir -p "$(dirname "$out")"
  mv "$work/out.tar" "$out"
  chmod 644 "$out"
  printf '%s\n  binary   %8d bytes  %s\n  layer    %8d bytes  compressed\n  archive  %8d bytes  %s\n  digest   sha256:%s\n' \
    "$name" "$(size "$work/root/$title")" "$target" "$layer_size" "$(size "$out")" "$out" "$manifest"
}
