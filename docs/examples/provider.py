"""A provider of the kind note.take, at the basic level of docs/protocol.md: python provider.py amqp://… notes.db"""

import sys
import time

import pika
from work import Ledger, Problem, check, take_note

KIND = "note.take"
DEAD = {"x-queue-type": "quorum", "x-delivery-limit": 1_000_000}
REQUESTS = {"x-queue-type": "quorum", "x-delivery-limit": 5, "x-overflow": "reject-publish", "x-max-length": 1_000_000,
            "x-dead-letter-exchange": "arr.dead", "x-dead-letter-routing-key": KIND,
            "x-dead-letter-strategy": "at-least-once"}


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
        message_type, content_type = "arr.reply", "application/json"
    except Problem as problem:
        result, message_type, content_type = problem.body, "arr.error", "application/problem+json"
    if (request.reply_to or "").startswith("arr.reply."):
        headers = {name: (request.headers or {}).get(name, 1) for name in ["attempt", "step"]}
        reply = pika.BasicProperties(
            type=message_type, content_type=content_type, correlation_id=request.correlation_id, delivery_mode=2,
            timestamp=int(time.time()), headers=headers,
            message_id=f"{headers['step']}.{headers['attempt']}.{request.correlation_id}"[:255])
        # Waits for the confirm. If it is refused or returned, this ends, and the request is delivered again.
        channel.basic_publish("arr.reply", request.reply_to, result, reply, mandatory=True)
    channel.basic_ack(delivery.delivery_tag)


ledger = Ledger(sys.argv[2])
channel = pika.BlockingConnection(pika.URLParameters(sys.argv[1])).channel()
declare(channel)
channel.confirm_delivery()
channel.basic_qos(prefetch_count=1)
channel.basic_consume(f"arr.request.{KIND}", on_request)
channel.start_consuming()
