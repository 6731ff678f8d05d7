//! The serial port at 0x3f8, a 16550: registers from `vm-superio`, its interrupt an eventfd, its output a queue.
//!
//! What comes in waits outside: the port takes as many bytes as its FIFO has room for, and says by an eventfd when the
//! guest has emptied it.

use std::convert::Infallible;
use std::sync::Arc;

use vm_superio::serial::{Serial, SerialEvents};
use vm_superio::{SerialState as Registers, Trigger};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::console::ConsoleOutput;
use crate::state::{RestoreError, SerialState};

/// First port.
pub const PORTS: u16 = 0x3f8;
/// How many.
pub const PORTS_COUNT: u8 = 8;
/// Its interrupt, an IOAPIC pin.
pub const GSI: u32 = 4;

/// Raises the interrupt. That an eventfd's counter is full means that it is raised already.
#[derive(Debug)]
struct Line(EventFd);

impl Trigger for Line {
    type E = Infallible;

    fn trigger(&self) -> Result<(), Infallible> {
        // The only failure of a non-blocking eventfd is a full counter.
        let _ = self.0.write(1);
        Ok(())
    }
}

#[derive(Debug)]
struct Drained(Arc<EventFd>);

impl SerialEvents for Drained {
    fn buffer_read(&self) {}
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {
        let _ = self.0.write(1);
    }
}

/// The port.
#[derive(Debug)]
pub struct SerialPort {
    registers: Serial<Line, Drained, ConsoleOutput>,
    drained: Arc<EventFd>,
}

impl SerialPort {
    /// A port after its reset. `interrupt` is what raises its line.
    pub fn new(interrupt: EventFd, output: ConsoleOutput) -> std::io::Result<Self> {
        let drained = Arc::new(EventFd::new(EFD_NONBLOCK)?);
        let registers = Serial::with_events(Line(interrupt), Drained(Arc::clone(&drained)), output);
        Ok(Self { registers, drained })
    }

    /// Whether the port is one of the serial port's.
    pub fn has(port: u16) -> bool {
        (PORTS..PORTS + u16::from(PORTS_COUNT)).contains(&port)
    }

    /// The value of a register.
    pub fn read(&mut self, port: u16) -> u8 {
        self.registers.read((port.wrapping_sub(PORTS)) as u8)
    }

    /// Changes a register.
    pub fn write(&mut self, port: u16, value: u8) {
        // The output takes everything and the interrupt can't fail; what is left is a loop-back into a full FIFO, whose
        // byte is lost as on the wire.
        let _ = self.registers.write((port.wrapping_sub(PORTS)) as u8, value);
    }

    /// Gives the guest as many of these bytes as there is room for; how many.
    pub fn receive(&mut self, bytes: &[u8]) -> usize {
        let room = self.registers.fifo_capacity().min(bytes.len());
        // A port in loop-back mode takes nothing, like one that is unplugged; the bytes are gone either way.
        let _ = self.registers.enqueue_raw_bytes(&bytes[..room]);
        room
    }

    /// Readable when the guest has emptied a FIFO.
    pub fn drained(&self) -> Arc<EventFd> {
        Arc::clone(&self.drained)
    }

    /// The registers and what is in the FIFO.
    pub fn save(&self) -> SerialState {
        let Registers {
            baud_divisor_low: divisor_low,
            baud_divisor_high: divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            in_buffer: received,
        } = self.registers.state();
        SerialState {
            divisor_low,
            divisor_high,
            interrupt_enable,
            interrupt_identification,
            line_control,
            line_status,
            modem_control,
            modem_status,
            scratch,
            received,
        }
    }

    /// As it was when it was saved. An interrupt that is due is raised.
    pub fn restore(&mut self, state: &SerialState) -> Result<(), RestoreError> {
        let registers = Registers {
            baud_divisor_low: state.divisor_low,
            baud_divisor_high: state.divisor_high,
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            in_buffer: state.received.clone(),
        };
        let line = self.registers.interrupt_evt().0.try_clone();
        let line = Line(line.map_err(|error| RestoreError::System(error.to_string()))?);
        let drained = Drained(Arc::clone(&self.drained));
        self.registers = Serial::from_state(&registers, line, drained, self.registers.writer().clone())
            .map_err(|_| RestoreError::Damaged("more in the serial port than it holds"))?;
        Ok(())
    }
}
