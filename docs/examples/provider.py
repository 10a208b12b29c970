"""A provider of the kind note.take, at the basic level of docs/protocol.md: python provider.py amqp://… notes.db"""

import sys
import time

import pika
from work import Ledger, Problem, check, may_answer, take_note

KIND = "note.take"
DEAD = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}
REQUESTS = {**DEAD, "x-delivery-limit": 5, "x-overflow": "reject-publish", "x-max-length": 1_000_000,
            "x-dead-letter-exchange": "arr.dead", "x-dead-letter-routing-key": KIND, "x-dead-letter-strategy": "at-least-once"}


def declare(channel):
    for exchange in ["arr.request", "arr.reply", "arr.dead"]:
        channel.exchange_declare(exchange, "direct", durable=True)
    for exchange, arguments in [("arr.dead", DEAD), ("arr.request", REQUESTS)]:
        channel.queue_declare(f"{exchange}.{KIND}", durable=True, arguments=arguments)
        channel.queue_bind(f"{exchange}.{KIND}", exchange, KIND)


def on_request(channel, delivery, request, body):
    try:
        check(request)
        result = ledger.once(request.message_id, lambda database: take_note(database, body))
        kind, media_type = "arr.reply", "application/json"
    except Problem as problem:
        kind, media_type, result = "arr.error", "application/problem+json", problem.body
    attempt, step = [(request.headers or {}).get(name, 1) for name in ["attempt", "step"]]
    reply = pika.BasicProperties(
        type=kind, content_type=media_type, correlation_id=request.correlation_id, headers={"attempt": attempt, "step": step},
        message_id=f"{step}.{attempt}.{request.correlation_id}"[:255], timestamp=int(time.time()), delivery_mode=2)
    try:
        if may_answer(request):  # Publishing waits for the confirm.
            channel.basic_publish("arr.reply", request.reply_to, result, reply, mandatory=True)
    except (pika.exceptions.UnroutableError, pika.exceptions.NackError):
        time.sleep(1)
        return channel.basic_reject(delivery.delivery_tag)  # It comes again; after five times it is a dead letter.
    channel.basic_ack(delivery.delivery_tag)


ledger = Ledger(sys.argv[2])
requests = pika.BlockingConnection(pika.URLParameters(sys.argv[1])).channel()
declare(requests)
requests.confirm_delivery()
requests.basic_qos(prefetch_count=1)
requests.basic_consume(f"arr.request.{KIND}", on_request)
requests.start_consuming()
