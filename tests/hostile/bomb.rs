//! AMQP by hand: a client that sends what no library would.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Publishes a message to `queue` with one header: an array in an array, `depth` times. Five bytes a level.
pub(crate) async fn publish_nested(address: &str, virtual_host: &str, queue: &str, depth: usize) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(b"AMQP\x00\x00\x09\x01").await.unwrap();
    receive(&mut stream).await;
    let login = [long(b""), short("PLAIN"), long(b"\0guest\0guest"), short("en_US")].concat();
    send(&mut stream, 1, 0, &[method(10, 11), login].concat()).await;
    receive(&mut stream).await;
    // What the broker proposes: frames of up to 128 KiB; and no heartbeats.
    let limits = [&2047_u16.to_be_bytes()[..], &131_072_u32.to_be_bytes(), &[0, 0]].concat();
    send(&mut stream, 1, 0, &[method(10, 31), limits].concat()).await;
    send(&mut stream, 1, 0, &[method(10, 40), short(virtual_host), vec![0, 0]].concat()).await;
    receive(&mut stream).await;
    send(&mut stream, 1, 1, &[method(20, 10), short("")].concat()).await;
    receive(&mut stream).await;
    send(&mut stream, 1, 1, &[method(85, 10), vec![0]].concat()).await;
    receive(&mut stream).await;
    send(&mut stream, 1, 1, &[method(60, 40), vec![0, 0], short(""), short(queue), vec![0]].concat()).await;
    let headers = [short("x"), nested(depth)].concat();
    // Class, weight, body size, flags: headers only.
    let properties = [&[0, 60, 0, 0][..], &1_u64.to_be_bytes(), &[0x20, 0], &long(&headers)].concat();
    send(&mut stream, 2, 1, &properties).await;
    send(&mut stream, 3, 1, b"1").await;
    let confirm = receive(&mut stream).await;
    assert_eq!(confirm[..4], method(60, 80), "the broker did not take it: {confirm:?}");
}

fn nested(depth: usize) -> Vec<u8> {
    // From the outside in: each array's length is what is left of it.
    let mut value = Vec::with_capacity(5 * depth + 1);
    for level in (0..depth).rev() {
        value.push(b'A');
        value.extend(u32::try_from(5 * level + 1).unwrap().to_be_bytes());
    }
    value.push(b'V');
    value
}

fn method(class: u16, method: u16) -> Vec<u8> {
    [class.to_be_bytes(), method.to_be_bytes()].concat()
}

fn short(text: &str) -> Vec<u8> {
    [&[u8::try_from(text.len()).unwrap()][..], text.as_bytes()].concat()
}

fn long(bytes: &[u8]) -> Vec<u8> {
    [&u32::try_from(bytes.len()).unwrap().to_be_bytes()[..], bytes].concat()
}

async fn send(stream: &mut TcpStream, kind: u8, channel: u16, payload: &[u8]) {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let frame = [&[kind][..], &channel.to_be_bytes(), &length, payload, &[0xce]].concat();
    stream.write_all(&frame).await.unwrap();
}

async fn receive(stream: &mut TcpStream) -> Vec<u8> {
    let mut head = [0; 7];
    stream.read_exact(&mut head).await.unwrap();
    let length = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
    let mut payload = vec![0; length as usize + 1];
    stream.read_exact(&mut payload).await.unwrap();
    payload
}
