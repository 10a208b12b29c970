# Three nodes in containers: sh containers.sh ACTION [NODE] [ARGUMENT…], with CLUSTER (a name of its own), FOLDER, IMAGE
# and PORTS (AMQP and management of node 1, 2 and 3). Clients come by published ports, the nodes talk on a network of
# their own: a node that is cut off from the others still has its clients.
set -eu
action=$1 node=${2:-} container=$CLUSTER-${2:-}
create() { # create NODE AMQP MANAGEMENT
  docker create --name "$CLUSTER-$1" --hostname "rabbit$1" --label "cluster=$CLUSTER" \
    --publish "127.0.0.1:$2:5672" --publish "127.0.0.1:$3:15672" --env "RABBITMQ_ERLANG_COOKIE=$CLUSTER" \
    --env "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS=+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none" "$IMAGE"
  docker cp "$FOLDER/cluster.conf" "$CLUSTER-$1:/etc/rabbitmq/conf.d/20-cluster.conf"
  docker network connect --alias "rabbit$1" "$CLUSTER" "$CLUSTER-$1"
}
case $action in
  create)
    docker network create --label "cluster=$CLUSTER" "$CLUSTER"
    set -- $PORTS
    create 1 "$1" "$2"; create 2 "$3" "$4"; create 3 "$5" "$6" ;;
  name) echo "rabbit@rabbit$node" ;;
  run) docker start "$container" ;;
  rabbitmqctl) shift 2; docker exec "$container" rabbitmqctl --quiet "$@" ;;
  kill) docker kill "$container" ;;
  pause) docker pause "$container" ;;
  resume) docker unpause "$container" ;;
  cut) docker network disconnect "$CLUSTER" "$container" ;;
  heal) docker network connect --alias "rabbit$node" "$CLUSTER" "$container" ;;
  remove)
    docker ps --all --quiet --filter "label=cluster=$CLUSTER" | xargs -r docker rm --force --volumes
    docker network rm "$CLUSTER" ;;
esac
