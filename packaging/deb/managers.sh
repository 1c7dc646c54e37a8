# Runs "$@" for every user whose systemd runs, all at the same time, and waits for them. Whatever fails for one of them
# is no reason not to install or remove a package.
for_each_manager() {
    [ -d /run/systemd/system ] || return 0
    for folder in /run/user/*; do
        user=${folder##*/}
        if [ -S "$folder/systemd/private" ]; then "$@" & fi
    done
    wait
}

# systemctl as $user; nothing of theirs is run, and none of it as root.
manager() {
    group=$(id -g "$user") &&
        timeout 120 setpriv --reuid="$user" --regid="$group" --init-groups env -i PATH=/usr/bin:/bin LC_ALL=C \
            XDG_RUNTIME_DIR="/run/user/$user" systemctl --user "$@" </dev/null
}

# Whether the unit $1, loaded, is one that runs this package: users may have others of that name.
is_ours() {
    case $(manager show --property=ExecStart --property=ExecStartPost "$1" 2>/dev/null) in
        *path=/usr/bin/llm-proxy\ *) ;;
        *) return 1 ;;
    esac
}
