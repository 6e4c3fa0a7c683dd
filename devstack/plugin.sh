#!/bin/bash
# The connmon plugin of devstack, which calls it as: source plugin.sh MODE [PHASE]
#
# Rules kept here:
#
# - Running it twice is the same as running it once, and unstack leaves each file as it would be without the
#   plugin.
# - An option that contains connmon already, set by somebody else, stays as it is.
# - It works under errexit and nounset, and shows no password when devstack traces.

_XTRACE_CONNMON=$(set +o | grep xtrace)
set +o xtrace

CONNMON_MARK="# Written by the connmon plugin of devstack."

# --- Values with and without connmon

# connmon_options: print the options for every service.
function connmon_options {
    local options=""
    [[ $CONNMON_SERVICE == default ]] || options+="&connmon_service=$CONNMON_SERVICE"
    [[ $CONNMON_CONFIG == /etc/connmon.cfg ]] || options+="&connmon_config=$CONNMON_CONFIG"
    [[ -z $CONNMON_OPTIONS ]] || options+="&$CONNMON_OPTIONS"
    echo "${options#&}"
}

# connmon_and A B: print both parameters, or the one that is not empty.
function connmon_and {
    echo "$1${1:+${2:+&}}$2"
}

# connmon_without PARAMETERS: print the parameters that are not connmon's.
function connmon_without {
    local part kept=""
    local -a parts
    IFS="&" read -r -a parts <<<"$1"
    for part in ${parts[@]+"${parts[@]}"}; do
        case $part in
            plugin=connmon | connmon_*) ;;
            *) kept=$(connmon_and "$kept" "$part") ;;
        esac
    done
    echo "$kept"
}

# connmon_url_without URL: print the URL without connmon.
function connmon_url_without {
    local scheme=${1%%://*} rest=${1#*://} login="" query=""
    # A question mark may be in the password.
    if [[ $rest == *@* ]]; then
        login=${rest%%@*}@
        rest=${rest#*@}
    fi
    if [[ $rest == *\?* ]]; then
        query=$(connmon_without "${rest#*\?}")
        rest=${rest%%\?*}
    fi
    scheme=${scheme%+connmon}
    echo "${scheme%_connmon}://$login$rest${query:+?}$query"
}

# connmon_url_with URL: print the URL with connmon.
function connmon_url_with {
    local scheme=${1%%://*} rest=${1#*://} options sep="?"
    options=$(connmon_options)
    if [[ $scheme == *+* ]]; then scheme+=_connmon; else scheme+=+connmon; fi
    [[ ${rest#*@} != *\?* ]] || sep="&"
    echo "$scheme://$rest${options:+$sep}$options"
}

# connmon_value with|without OPTION VALUE: print the value of the option with or without connmon.
function connmon_value {
    case $2/$1 in
        connection_parameters/with) connmon_and "$3" "$(connmon_and plugin=connmon "$(connmon_options)")" ;;
        connection_parameters/without) connmon_without "$3" ;;
        */with) connmon_url_with "$3" ;;
        */without) connmon_url_without "$3" ;;
    esac
}

# --- The files

# connmon_revert FILE SECTION OPTION: restore the option as it would be without the plugin.
function connmon_revert {
    local file=$1 section=$2 option=$3 value reverted
    [[ -f $file ]] || return 0
    if [[ $option == env ]]; then
        sed -i -e '/^env[ \t]*=[ \t]*OS_[A-Z_]*DATABASE__CONNECTION_PARAMETERS=.*connmon_program=/d' "$file"
        return 0
    fi
    value=$(iniget "$file" "$section" "$option")
    reverted=$(connmon_value without "$option" "$value")
    if [[ -z $reverted ]]; then
        inidelete "$file" "$section" "$option"
    elif [[ $reverted != "$value" ]]; then
        iniset "$file" "$section" "$option" "$reverted"
    fi
}

# connmon_changed FILE SECTION: print the options there that the plugin has changed.
function connmon_changed {
    [[ -f $CONNMON_CHANGED ]] || return 0
    awk -F '\t' -v file="$1" -v section="$2" '$1 == file && $2 == section { print $3 }' "$CONNMON_CHANGED"
}

# connmon_note FILE SECTION OPTION: note that the plugin changes this option.
function connmon_note {
    local line
    line=$(printf '%s\t%s\t%s' "$1" "$2" "$3")
    mkdir -p "$(dirname "$CONNMON_CHANGED")"
    grep -qxF -e "$line" "$CONNMON_CHANGED" 2>/dev/null || echo "$line" >>"$CONNMON_CHANGED"
}

# connmon_watch FILE SECTION: watch the database of that section, if it has one.
function connmon_watch {
    local file=$1 section=$2 option value
    local -a options=(connection_parameters)
    [[ -f $file && -n $(iniget "$file" "$section" connection) ]] || return 0
    # The settings may have changed since the last run.
    for option in $(connmon_changed "$file" "$section"); do
        connmon_revert "$file" "$section" "$option"
    done
    for option in connection slave_connection connection_parameters; do
        if [[ $(iniget "$file" "$section" "$option") == *connmon* ]]; then
            value=$(iniget "$file" "$section" "$option")
            if [[ $value != "$(connmon_value without "$option" "$value")" ]]; then
                echo "connmon: $option in [$section] of $file has connmon already, and stays as it is"
                return 0
            fi
        fi
    done
    [[ $CONNMON_FORM != url ]] || options=(connection slave_connection)
    for option in "${options[@]}"; do
        value=$(iniget "$file" "$section" "$option")
        [[ -n $value || $option == connection_parameters ]] || continue
        # The note comes first: a noted option that was not changed can be reverted, but not the reverse.
        connmon_note "$file" "$section" "$option"
        iniset "$file" "$section" "$option" "$(connmon_value with "$option" "$value")"
    done
}

# connmon_name UWSGI_FILE PROGRAM FILE SECTION...: show the processes of this uWSGI as PROGRAM, the name of the
# service. Other programs read FILE too, so the name goes into the environment, which oslo.config reads first.
function connmon_name {
    local ini=$1 program=$2 file=$3 section value
    shift 3
    [[ -f $ini ]] || return 0
    connmon_revert "$ini" uwsgi env
    for section in "$@"; do
        [[ -n $(connmon_changed "$file" "$section") ]] || continue
        value=$(connmon_and "$(iniget "$file" "$section" connection_parameters)" "connmon_program=$program")
        connmon_note "$ini" uwsgi env
        # In uWSGI's files a % begins a placeholder.
        iniadd_literal "$ini" uwsgi env "OS_${section^^}__CONNECTION_PARAMETERS=${value//%/%%}"
    done
}

# connmon_watch_service keystone|nova|neutron|cinder|glance|placement
function connmon_watch_service {
    local cell
    is_service_enabled "$1" || return 0
    case $1 in
        keystone)
            connmon_watch "$KEYSTONE_CONF" database
            connmon_name "$KEYSTONE_PUBLIC_UWSGI_CONF" keystone-api "$KEYSTONE_CONF" database
            ;;
        nova)
            connmon_watch "$NOVA_CONF" database
            connmon_watch "$NOVA_CONF" api_database
            for ((cell = 1; cell <= ${NOVA_NUM_CELLS:-1}; cell++)); do
                connmon_watch "$(conductor_conf "$cell")" database
            done
            connmon_name "$NOVA_UWSGI_CONF" nova-api "$NOVA_CONF" database api_database
            connmon_name "$NOVA_METADATA_UWSGI_CONF" nova-metadata "$NOVA_CONF" database api_database
            ;;
        neutron)
            connmon_watch "$NEUTRON_CONF" database
            connmon_name "$NEUTRON_UWSGI_CONF" neutron-api "$NEUTRON_CONF" database
            ;;
        cinder)
            connmon_watch "$CINDER_CONF" database
            connmon_name "$CINDER_UWSGI_CONF" cinder-api "$CINDER_CONF" database
            ;;
        glance)
            connmon_watch "$GLANCE_API_CONF" database
            connmon_name "$GLANCE_UWSGI_CONF" glance-api "$GLANCE_API_CONF" database
            ;;
        placement)
            connmon_watch "$PLACEMENT_CONF" placement_database
            connmon_name "$PLACEMENT_UWSGI_CONF" placement-api "$PLACEMENT_CONF" placement_database
            ;;
    esac
}

# connmon_unwatch: restore all changed options as they would be without the plugin.
function connmon_unwatch {
    local file section option
    [[ -f $CONNMON_CHANGED ]] || return 0
    while IFS=$'\t' read -r file section option; do
        connmon_revert "$file" "$section" "$option"
    done <"$CONNMON_CHANGED"
    # devstack copies this file from another one when it starts nova-compute.
    if [[ -n ${NOVA_CPU_CONF:-} ]]; then
        for section in database api_database; do
            connmon_revert "$NOVA_CPU_CONF" "$section" connection_parameters
        done
    fi
    rm -f "$CONNMON_CHANGED"
}

# --- The node

# connmon_config_is_ours: succeed if the config file exists and the plugin has written it.
function connmon_config_is_ours {
    [[ -f $CONNMON_CONFIG && $(head -n 1 "$CONNMON_CONFIG") == "$CONNMON_MARK" ]]
}

function connmon_configure {
    if [[ -e $CONNMON_CONFIG ]] && ! connmon_config_is_ours; then
        echo "connmon: $CONNMON_CONFIG exists already, and is used unchanged"
        return 0
    fi
    {
        echo "$CONNMON_MARK"
        echo "[connmon_service_$CONNMON_SERVICE]"
        echo "name: $CONNMON_SERVICE"
        [[ -z $CONNMON_SECRET ]] || echo "secret: $CONNMON_SECRET"
        echo
        echo "nodes:"
        echo "    node1 hostname=$CONNMON_HOST:$CONNMON_PORT bind=$CONNMON_BIND"
    } | sudo install -m 0640 -o "$(id -un)" -g "$(id -gn)" /dev/stdin "$CONNMON_CONFIG"
}

function connmon_start {
    local connmond
    connmond=$(get_python_exec_prefix)/connmond
    run_process connmond "$connmond --config $CONNMON_CONFIG --service $CONNMON_SERVICE"
}

# --- devstack's phases

if is_service_enabled connmon; then
    case "$1 ${2:-}" in
        "stack install")
            echo_summary "Installing connmon"
            pip_install "$CONNMON_DIR"
            connmon_configure
            connmon_start
            # keystone starts before the phase in which all other services are configured.
            connmon_watch_service keystone
            ;;
        "stack post-config")
            echo_summary "Setting up connmon in the services"
            for _connmon_service in keystone nova neutron cinder glance placement; do
                connmon_watch_service "$_connmon_service"
            done
            unset _connmon_service
            ;;
        "unstack "*)
            connmon_unwatch
            stop_process connmond
            if connmon_config_is_ours; then
                sudo rm -f "$CONNMON_CONFIG"
            fi
            ;;
        "clean "*)
            pip_uninstall connmon
            ;;
    esac
fi

$_XTRACE_CONNMON
