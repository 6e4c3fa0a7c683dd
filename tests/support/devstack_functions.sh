# shellcheck shell=bash
# shellcheck disable=SC2016  # the programs in single quotes are for awk
# The functions of devstack that the plugin calls, each with the contract of devstack's own, for
# test_devstack. With CONNMON_TEST_DEVSTACK it uses those of a real devstack instead.

function iniget {
    local value
    value=$(awk -v section="[$2]" -v option="$3" '
        /^\[/ { inside = $0 == section }
        inside && match($0, "^" option "[ \t]*=") { print substr($0, RLENGTH + 1); exit }
    ' "$1")
    # shellcheck disable=SC2086
    echo $value
}

function ini_edit { # FILE SECTION OPTION: edit with the awk program on stdin, which can use `inside` and `has`
    local edited
    edited=$(mktemp)
    VALUE=${4:-} awk -v section="[$2]" -v option="$3" "
        /^\\[/ { inside = \$0 == section }
        { has = inside && match(\$0, \"^\" option \"[ \\t]*=[ \\t]*\") }
        $(cat)
    " "$1" >"$edited"
    cat "$edited" >"$1"
    rm "$edited"
}

function iniset {
    grep -qxF "[$2]" "$1" 2>/dev/null || printf '\n[%s]\n' "$2" >>"$1"
    if [[ -n $(iniget "$1" "$2" "$3") ]]; then
        ini_edit "$@" <<<'has { print substr($0, 1, RLENGTH) ENVIRON["VALUE"]; next } { print }'
    else
        iniadd_literal "$@"
    fi
}

function iniadd_literal {
    ini_edit "$@" <<<'{ print } $0 == section { print option " = " ENVIRON["VALUE"] }'
}

function inidelete {
    ini_edit "$@" <<<'! has { print }'
}
