"""What people decide: tickets, and who holds them."""

from headrace.human.tickets import Lease, NewTicket, QueueState, Tensor, Ticket, TicketStore

__all__ = ["Lease", "NewTicket", "QueueState", "Tensor", "Ticket", "TicketStore"]
