//! Every server echoes every frame unchanged however it is cut, and closes on what is no frame.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use peers::wire::{self, HEADER_LEN, LARGEST_BODY};

const PATIENCE: Duration = Duration::from_secs(60);

/// A server that runs; dropping it ends it.
struct Server {
    child: Child,
    addr: String,
}

impl Server {
    fn start(program: &str, args: &[&str]) -> Self {
        let mut child =
            Command::new(program).args(args).stdout(Stdio::piped()).spawn().expect("it was built");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("it is piped")).read_line(&mut line).unwrap();
        let addr = line.trim().strip_prefix("listening on ").expect("it says where").to_owned();
        Self { child, addr }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.addr).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn frame(size: usize, seq: u64) -> Vec<u8> {
    let mut frame = wire::header(size, seq, 7).to_vec();
    frame.extend((0..size).map(|at| (at * 31 + at / 251) as u8));
    frame
}

/// Sends the bytes in pieces, and hears the very same bytes.
fn assert_echoed(stream: &TcpStream, sent: &[u8], piece: usize) {
    let mut heard = vec![0; sent.len()];
    thread::scope(|scope| {
        scope.spawn(|| {
            for piece in sent.chunks(piece) {
                (&mut &*stream).write_all(piece).expect("the server reads");
            }
        });
        (&mut &*stream).read_exact(&mut heard).expect("the server answers");
    });
    assert!(heard == *sent, "what came back is not what was sent");
}

/// The server closes the connection without an answer.
fn assert_closed(mut stream: TcpStream, sent: &[u8]) {
    stream.write_all(sent).unwrap();
    // A reset is a close, too.
    let heard = stream.read(&mut [0; 64]).unwrap_or(0);
    assert_eq!(heard, 0, "the server answers what is no frame");
}

fn check(program: &str, args: &[&str]) {
    let server = Server::start(program, args);
    let witness = server.connect();
    let stream = server.connect();

    let small: Vec<u8> = (0..300).flat_map(|seq| frame(seq as usize % 97, seq)).collect();
    for piece in [small.len(), 1, 7, HEADER_LEN + 1, 4096] {
        assert_echoed(&stream, &small, piece);
    }
    let sizes = [0, 65_517, 65_518, 65_519, 65_536, 65_537, 3, 200_000, 1, 300_000, 300_000, 0];
    let mixed: Vec<u8> = sizes.iter().zip(0..).flat_map(|(&size, seq)| frame(size, seq)).collect();
    for piece in [mixed.len(), 65_536, 40_003, 1_000] {
        assert_echoed(&stream, &mixed, piece);
    }
    assert_echoed(&stream, &frame(LARGEST_BODY, 9).repeat(2), usize::MAX);

    let mut wrong = frame(10, 1);
    wrong[1] ^= 1;
    assert_closed(server.connect(), &wrong);
    let mut long = frame(10, 1);
    long[2..6].copy_from_slice(&(LARGEST_BODY as u32 + 1).to_be_bytes());
    assert_closed(server.connect(), &long);
    assert_echoed(&witness, &small, small.len());

    // What arrives together with the end is answered or not; the server goes on.
    let mut brief = server.connect();
    brief.write_all(&small).unwrap();
    drop(brief);
    assert_echoed(&witness, &small, small.len());
}

macro_rules! servers {
    ($($test:ident: $program:literal $($arg:literal)*;)*) => {$(
        #[test]
        fn $test() {
            check(env!(concat!("CARGO_BIN_EXE_", $program)), &[$($arg),*]);
        }
    )*};
}

servers! {
    floor: "floor";
    floor_that_drains: "floor" "--drain";
    plain_mio: "plain_mio";
    tokio_hand: "tokio_hand";
    tokio_framed: "tokio_framed";
    tokio_framed_with_a_timeout: "tokio_framed" "--idle-timeout" "30";
    message_io: "message_io";
    threads: "threads";
    longhaul: "longhaul";
    longhaul_with_a_timeout: "longhaul" "--idle-timeout" "30";
}
