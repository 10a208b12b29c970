# Three nodes of Debian's rabbitmq-server, each in a network namespace of its own as if on a machine of its own:
# sh namespaces.sh ACTION [NODE] [ARGUMENT…] as root, with CLUSTER (a name of at most 8 letters), NETWORK (the first three
# numbers of its addresses) and FOLDER. A switch in a fourth namespace, where no firewall of this machine reaches,
# connects them with each other and with this machine.
set -eu
action=$1 node=${2:-} namespace=$CLUSTER-${2:-} home=$FOLDER/${2:-}
programs=/usr/lib/rabbitmq/bin
within() { # within COMMAND…: in the node's namespace, with what the server and its tools need to know
  env HOME="$home" RABBITMQ_USE_LONGNAME=true RABBITMQ_NODENAME="rabbit@$NETWORK.$node" \
    RABBITMQ_MNESIA_BASE="$home/mnesia" RABBITMQ_LOG_BASE="$home/log" RABBITMQ_CONFIG_FILE="$FOLDER/cluster.conf" \
    RABBITMQ_ENABLED_PLUGINS_FILE="$FOLDER/enabled_plugins" RABBITMQ_CONF_ENV_FILE="$FOLDER/env.conf" \
    RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS='+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none' \
    ip netns exec "$namespace" "$@"
}
connect() { # connect NODE
  ip netns add "$CLUSTER-$1"
  ip -n "$CLUSTER" link add "node$1" type veth peer name eth0 netns "$CLUSTER-$1"
  ip -n "$CLUSTER" link set "node$1" master switch up
  ip -n "$CLUSTER-$1" address add "$NETWORK.$1/24" dev eth0
  ip -n "$CLUSTER-$1" link set eth0 up
  ip -n "$CLUSTER-$1" link set lo up
  mkdir "$FOLDER/$1"
  printf %s "$CLUSTER" >"$FOLDER/$1/.erlang.cookie"
  chmod 400 "$FOLDER/$1/.erlang.cookie"
}
# Some end by themselves when others do, between being listed and being told.
signal() { ip netns pids "$namespace" | xargs -r kill -s "$1" 2>/dev/null || true; }
case $action in
  create)
    ip netns add "$CLUSTER"
    ip -n "$CLUSTER" link add switch type bridge
    ip -n "$CLUSTER" link set switch up
    ip link add "$CLUSTER" type veth peer name machine netns "$CLUSTER"
    ip -n "$CLUSTER" link set machine master switch up
    ip address add "$NETWORK.254/24" dev "$CLUSTER"
    ip link set "$CLUSTER" up
    echo '[rabbitmq_management].' >"$FOLDER/enabled_plugins"
    : >"$FOLDER/env.conf"
    connect 1; connect 2; connect 3 ;;
  name) echo "rabbit@$NETWORK.$node" ;;
  run)
    # The redirection comes first: who calls waits until nobody holds its pipe any more.
    exec </dev/null >>"$home/output.log" 2>&1
    within setsid "$programs/rabbitmq-server" & ;;
  rabbitmqctl) shift 2; within "$programs/rabbitmqctl" --quiet "$@" ;;
  kill) signal KILL ;;
  pause) signal STOP ;;
  resume) signal CONT ;;
  cut) ip -n "$CLUSTER" link set "node$node" down ;;
  heal) ip -n "$CLUSTER" link set "node$node" up ;;
  remove)
    for namespace in "$CLUSTER-1" "$CLUSTER-2" "$CLUSTER-3"; do signal KILL || true; ip netns del "$namespace" || true; done
    ip link del "$CLUSTER" || true
    ip netns del "$CLUSTER" ;;
esac
