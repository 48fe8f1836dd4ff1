# distutils: language = c++
"""The native front: connections, the requests that it understands, and the line in which they wait.

Every connection begins here. What a request for a plain inference needs is done without a Python object; everything
else is handed to the reference in Python, request by request, or, where the framing itself is unusual, the connection
as a whole. The line decides as `core.batching.BatchQueue` does for tickets of one shape and priority.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.errno cimport EAGAIN, ECONNABORTED, EINTR, EMFILE, ENFILE, ENOBUFS, ENOMEM, errno
from libc.math cimport rint
from libc.stdint cimport int64_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove
from libcpp cimport bool as cbool
from libcpp.deque cimport deque
from libcpp.string cimport string
from libcpp.vector cimport vector
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec


cdef extern from "wire.hpp" namespace "wire" nogil:
    cdef enum class Verdict:
        INCOMPLETE, NOT_MINE, FINE
    cdef enum class Kind:
        FLOAT32, FLOAT64, INT32, INT64
    cdef cppclass Text:
        const char *at
        size_t size
        cbool is_exactly(const string &)
    cdef cppclass Header:
        Text name
        Text value
    cdef cppclass Head:
        Text method
        Text target
        vector[Header] headers
        size_t num_bytes
        int64_t content_length
        int64_t json_length
        int64_t timeout_ms
        Header credential
        cbool is_plain
    cdef cppclass Input:
        string name
        string datatype
        Kind kind
        vector[int64_t] dims
        int64_t row_elements
        int64_t max_rows
    cdef cppclass Infer:
        int64_t num_rows
        cbool has_id
        cbool is_binary
        int64_t timeout_us
        const char *data
        size_t data_bytes
    cdef cppclass Output:
        string before_rows
        string after_rows
        Kind kind
        int64_t row_elements
    Verdict parse_head(const char *, size_t, size_t, Head &)
    size_t item_bytes(Kind)
    cbool read_infer(const char *, size_t, int64_t, const Input &, vector[char] &, Infer &)
    void write_answer(string &, const string &, const vector[Output] &, const vector[const char *] &, const Infer &, cbool)


cdef extern from "<sys/epoll.h>" nogil:
    ctypedef union epoll_data_t:
        uint64_t u64
    cdef struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event *)
    int epoll_wait(int, epoll_event *, int, int)
    enum: EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP, EPOLLET, EPOLL_CLOEXEC
    enum: EPOLL_CTL_ADD, EPOLL_CTL_DEL


cdef extern from "<sys/socket.h>" nogil:
    int accept4(int, void *, void *, int)
    ssize_t recv(int, void *, size_t, int)
    ssize_t send(int, const void *, size_t, int)
    int setsockopt(int, int, int, const void *, unsigned int)
    enum: SOCK_NONBLOCK, SOCK_CLOEXEC, MSG_NOSIGNAL


cdef extern from "<netinet/in.h>" nogil:
    enum: IPPROTO_TCP


cdef extern from "<netinet/tcp.h>" nogil:
    enum: TCP_NODELAY


cdef extern from "<unistd.h>" nogil:
    int close(int)


cdef enum:
    MAX_EVENTS = 1024
    CHUNK = 64  # requests read before the event loop gets to its other business: a millisecond's worth
    FIRST_BYTES = 8192
    MAX_REQUEST_BYTES = 262144
    MAX_ACCEPTS = 64
    MAX_HEAD_BYTES = 8192
    MAX_LOOKED_AT = 256
    MAX_GRANTS = 1024
    MAX_UNCHECKED_BYTES = 16384

cdef int64_t MAX_TIMEOUT_US = 3600 * 1000000  # as in serve.oip
cdef double WORTHWHILE = 0.95
cdef double SIZE_SMOOTHING = 0.25
cdef double CAUTION_GAINED = 0.5
cdef double CAUTION_LOST = 1e-3
cdef double IDLE_S = 200e-6
cdef double NEGLIGIBLE_S = 2e-3
cdef double REFUSAL_KEPT_S = 5e-3
cdef double MAX_WAITED_SHARE = 0.5
cdef uint64_t LISTENING = 1ull << 63

cdef enum:
    READING = 0
    WAITING = 1
    CLOSED = 2


cdef string POST = b"POST"


cdef double monotonic() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <double> now.tv_sec + 1e-9 * <double> now.tv_nsec


cdef Kind kind_of(str dtype) except *:
    if dtype == "float32":
        return Kind.FLOAT32
    if dtype == "float64":
        return Kind.FLOAT64
    if dtype == "int32":
        return Kind.INT32
    if dtype == "int64":
        return Kind.INT64
    raise ValueError(dtype)


cdef class NativeConnection:
    """A client. It has one request at a time; a client that sends the next before its answer gets the reference."""

    cdef Front front
    cdef readonly int descriptor
    cdef uint64_t number
    cdef uint64_t serial  # of the open request: a batch may outlive the deadline of what it runs
    cdef int state
    cdef char *buffer
    cdef size_t size, capacity
    cdef bytes unsent
    cdef size_t num_sent
    cdef bint is_told  # there is news from the kernel that was not looked at
    cdef bint is_closing  # after what is unsent
    cdef bint is_in_body  # of the request that is being received
    cdef double wait_until_s  # for the client's next step; 0 for ever
    cdef Head head
    cdef Infer infer
    cdef vector[char] data
    cdef object exchange
    # the ticket
    cdef double arrived_s, deadline_s, timeout_s, waited_s
    cdef bint is_abandoned, is_answered

    def __dealloc__(self):
        free(self.buffer)

    # --- what `Connections` and `Exchange` ask of a connection

    @property
    def is_idle(self):
        """Whether no request is open or half received."""
        return self.state == READING and self.size == 0 and self.unsent is None

    def close(self):
        """Close once everything is written."""
        if self.unsent is not None:
            self.is_closing = True
        else:
            self.front._drop(self)

    def flush(self):
        """Write the answer of the reference, which is there now."""
        exchange = self.exchange
        if exchange is None or self.state != WAITING:
            return
        answer = self.front.owner.render(self, exchange)
        if answer is None:  # it is sent piece by piece, by the reference
            return
        self.exchange = None
        self.front._answer(self, answer[0], answer[1])

    # --- for the reference

    def request(self):
        """Return method, target, headers and body of the open request."""
        cdef size_t i
        headers = {}
        for i in range(self.head.headers.size()):
            name, value = self.head.headers[i].name, self.head.headers[i].value
            headers[name.at[:name.size].lower()] = value.at[:value.size]
        method, target = self.head.method.at[:self.head.method.size], self.head.target.at[:self.head.target.size]
        body = self.buffer[self.head.num_bytes:self.head.num_bytes + <size_t> self.head.content_length]
        return method, target, headers, body

    @property
    def ticket(self):
        """When the request came, until when it is of use, how long it was given, and how long it had waited before."""
        return self.arrived_s, self.deadline_s, self.timeout_s, self.waited_s

    def attach(self, exchange):
        """Let the reference work on the open request."""
        self.exchange = exchange


cdef class NativeBatch:
    """Requests that run together."""

    cdef list connections
    cdef vector[uint64_t] serials
    cdef vector[long] rows
    cdef vector[double] arrived_s
    cdef readonly long num_rows
    cdef readonly long num_padded
    cdef readonly str closed

    def __len__(self):
        return len(self.connections)

    cdef NativeConnection _open(self, size_t at):
        """Return the connection of a request that still waits for its answer, or None."""
        cdef NativeConnection one = self.connections[at]
        if one.serial != self.serials[at] or one.is_answered or one.is_abandoned:
            return None
        return one


cdef class Line:
    """Requests for one version of a model that wait, in order; all have one shape and the normal priority."""

    cdef readonly object owner
    cdef Front front
    cdef Input input
    cdef vector[Output] outputs
    cdef string before
    cdef deque[PyObject *] waiting
    cdef vector[double] curve_rows, curve_seconds
    cdef vector[long] batch_sizes
    cdef public long max_batch_rows, max_queue_rows, num_workers, rows_ahead, rows_elsewhere
    cdef public double busy_until_s, timeout_s
    cdef public bint is_open
    cdef readonly long num_waiting_rows
    cdef readonly long num_accepted, num_refused, num_expired, num_batches, num_batched
    cdef double mean_rows, caution
    cdef bint is_touched
    cdef double earliest_s
    # counted since the last `take_counts`
    cdef vector[double] edges
    cdef vector[long] totals, queues
    cdef double total_s, queue_s, failed_s, last_s
    cdef long num_ok, num_ok_rows, num_overloaded, num_late
    # a refusal that was put into words a moment ago
    cdef bytes refusal
    cdef double refusal_s
    cdef int refusal_kind
    cdef bytes expiry
    cdef double expiry_timeout_s

    def __cinit__(self, owner, Front front, *, str name, str datatype, str dtype, dims, str before, outputs,
                  batch_sizes, edges, long max_batch_rows, long max_queue_rows, long num_workers, double timeout_s):
        cdef Output output
        self.owner, self.front = owner, front
        self.input.name, self.input.datatype, self.input.kind = name.encode(), datatype.encode(), kind_of(dtype)
        for dim in dims:
            self.input.dims.push_back(dim)
            self.input.row_elements *= <int64_t> dim
        self.before = before.encode()
        for start, end, output_dtype, row_elements in outputs:
            output.before_rows, output.after_rows = start.encode(), end.encode()
            output.kind, output.row_elements = kind_of(output_dtype), row_elements
            self.outputs.push_back(output)
        for size in batch_sizes:
            self.batch_sizes.push_back(size)
        for edge in edges:
            self.edges.push_back(edge)
        self.totals.resize(self.edges.size() + 1)
        self.queues.resize(self.edges.size() + 1)
        self.max_batch_rows, self.max_queue_rows, self.num_workers = max_batch_rows, max_queue_rows, num_workers
        self.timeout_s = timeout_s
        self.mean_rows = 1.0
        self.caution = 0.0
        self.refusal_kind = -1
        self.expiry_timeout_s = -1.0

    def __dealloc__(self):
        cdef size_t i
        for i in range(self.waiting.size()):
            Py_DECREF(<object> self.waiting[i])

    @property
    def num_waiting(self):
        """Requests that wait."""
        return <long> self.waiting.size()

    def set_curve(self, rows, seconds):
        """Take over what is known of the latency: seconds by rows, as in `LatencyEstimate.curve`."""
        self.curve_rows = rows
        self.curve_seconds = seconds

    # --- predictions, as in core.latency and core.batching

    cdef double _at(self, long num_rows) noexcept:
        cdef size_t above = 0, count = self.curve_rows.size()
        if count == 0:
            return 0.0
        while above < count and self.curve_rows[above] < num_rows:
            above += 1
        if above == count:
            return self.curve_seconds[count - 1] * num_rows / self.curve_rows[count - 1]
        if above == 0:
            return self.curve_seconds[0]
        cdef double share = (num_rows - self.curve_rows[above - 1]) / (self.curve_rows[above] - self.curve_rows[above - 1])
        return self.curve_seconds[above - 1] + share * (self.curve_seconds[above] - self.curve_seconds[above - 1])

    cdef long _padded(self, long num_rows) noexcept:
        cdef size_t i
        for i in range(self.batch_sizes.size()):
            if self.batch_sizes[i] >= num_rows:
                return self.batch_sizes[i]
        return num_rows

    cdef double _predict(self, long num_rows) noexcept:
        return self._at(self._padded(num_rows))

    def predict_s(self, long num_rows):
        """Predict how long so many rows take."""
        return self._predict(num_rows)

    @property
    def backlog_s(self):
        """How long what waits here keeps the workers busy."""
        full, rest = divmod(self.num_waiting_rows, self.max_batch_rows)
        seconds = full * self._predict(self.max_batch_rows) + (self._predict(rest) if rest else 0.0)
        return seconds / self.num_workers

    # --- in

    def offer(self, long num_rows, double deadline_s, double now_s):
        """Take in a request that nobody has sent, for simulations; return whether it was taken in."""
        connection = NativeConnection()
        connection.front, connection.descriptor, connection.state = self.front, -1, WAITING
        connection.infer.num_rows = num_rows
        connection.deadline_s, connection.timeout_s = deadline_s, deadline_s - now_s
        return bool(self._admit(connection, now_s))

    cdef int _admit(self, NativeConnection connection, double now_s) except -1:
        """Take a request in, or answer that it would come too late; return whether it was taken in."""
        cdef long num_rows = connection.infer.num_rows, most = self.max_batch_rows
        cdef long full, rest, rows, usual, ahead
        cdef double wait_s, run_s
        if self.waiting.size() or self.rows_elsewhere:
            ahead = self.num_waiting_rows + self.rows_ahead
            full, rest = ahead // most, ahead % most
            rows = rest + num_rows
            if rest and rows > most:
                full, rows = full + 1, num_rows
            wait_s = full * self._predict(most) / self.num_workers if full else 0.0
            run_s = self._predict(rows)
            usual = min(<long> rint(self.mean_rows), most)
            if usual > rows:
                run_s += self.caution * (self._predict(usual) - run_s)
            wait_s += max(self.busy_until_s - now_s, 0.0)
            if self.num_waiting_rows + self.rows_elsewhere + num_rows > self.max_queue_rows:
                self._refuse(connection, now_s, 0, wait_s, self.num_waiting_rows + self.rows_elsewhere)
                return 0
            if now_s + wait_s + run_s > connection.deadline_s:
                self._refuse(connection, now_s, 1, wait_s, wait_s + run_s)
                return 0
        Py_INCREF(connection)
        self.waiting.push_back(<PyObject *> connection)
        self.num_waiting_rows += num_rows
        self.num_accepted += 1
        connection.arrived_s = now_s
        connection.is_abandoned = connection.is_answered = False
        if self.earliest_s == 0.0 or connection.deadline_s < self.earliest_s:
            self.earliest_s = connection.deadline_s
        self._touch()
        return 1

    cdef void _touch(self) noexcept:
        if not self.is_touched:
            self.is_touched = True
            self.front.touched.append(self)

    cdef int _refuse(self, NativeConnection connection, double now_s, int kind, double wait_s, double fact) except -1:
        """Say no; the words are used again for a few milliseconds, as a server that refuses has much to do."""
        if self.refusal_kind != kind or now_s - self.refusal_s > REFUSAL_KEPT_S:
            self.refusal = self.owner.refusal(kind, max(wait_s, 0.001), fact)
            self.refusal_kind, self.refusal_s = kind, now_s
        self.num_refused += 1
        self.num_overloaded += 1
        self._touch()
        self.front._answer(connection, self.refusal, True)

    cdef int _too_busy(self, NativeConnection connection) except -1:
        self.num_overloaded += 1
        self.failed_s += connection.waited_s
        self._touch()
        self.front._answer(connection, self.front.too_busy, True)

    cdef int _expire(self, NativeConnection connection, double now_s) except -1:
        """Answer that the deadline has passed, unless that was said or nobody listens any more."""
        if connection.is_answered or connection.is_abandoned:
            return 0
        connection.is_answered = True
        if self.expiry_timeout_s != connection.timeout_s:
            self.expiry = self.owner.expiry(connection.timeout_s)
            self.expiry_timeout_s = connection.timeout_s
        self.num_late += 1
        self.failed_s += now_s - connection.arrived_s
        self._touch()
        self.front._answer(connection, self.expiry, True)

    # --- out

    cdef NativeConnection _head(self):
        return <NativeConnection> self.waiting.front()

    cdef NativeConnection _take(self):
        cdef PyObject *taken = self.waiting.front()
        self.waiting.pop_front()
        connection = <NativeConnection> taken
        Py_DECREF(connection)
        self.num_waiting_rows -= connection.infer.num_rows
        return connection

    cdef long _largest_in_time(self, long most, NativeConnection connection, double now_s) noexcept:
        cdef double slack_s = connection.deadline_s - now_s
        cdef long low, high, middle
        if self._predict(most) <= slack_s:
            return most
        low, high = connection.infer.num_rows - 1, most
        while high - low > 1:
            middle = (low + high) // 2
            if self._predict(middle) <= slack_s:
                low = middle
            else:
                high = middle
        return low if low >= connection.infer.num_rows else 0

    cdef bint _others_can_wait(self, double now_s):
        cdef NativeConnection head = self._head(), one
        cdef long num_rows = self.num_waiting_rows, taken = 0, first, most
        cdef double done_s
        cdef size_t i
        first = self._largest_in_time(max(min(num_rows, self.max_batch_rows), head.infer.num_rows), head, now_s)
        for i in range(self.waiting.size()):
            one = <NativeConnection> self.waiting[i]
            if taken + one.infer.num_rows > first:
                most = max(min(num_rows - taken, self.max_batch_rows), one.infer.num_rows)
                done_s = now_s + self._predict(taken) + self._predict(most)
                return taken > 0 and done_s <= one.deadline_s
            taken += one.infer.num_rows
        return True

    cdef long _num_given_up(self, double now_s):
        """Return how many of the oldest to give up for the sake of those behind them; -1 if none can be in time."""
        cdef NativeConnection head = self._head(), one
        cdef long num_left, most, num_rows
        cdef vector[double] rates
        cdef double seconds, best = 0.0
        cdef size_t i
        if now_s + self._predict(max(self.max_batch_rows, head.infer.num_rows)) <= head.deadline_s:
            return 0
        if self._others_can_wait(now_s):
            return 0
        num_left = self.num_waiting_rows
        for i in range(min(self.waiting.size(), <size_t> MAX_LOOKED_AT)):
            one = <NativeConnection> self.waiting[i]
            most = max(min(num_left, self.max_batch_rows), one.infer.num_rows)
            num_rows = self._largest_in_time(most, one, now_s)
            seconds = self._predict(num_rows)
            rates.push_back(num_rows / (seconds if seconds else 1e-9) if num_rows else 0.0)
            best = max(best, rates.back())
            num_left -= one.infer.num_rows
            if num_rows == most:
                break
        if best == 0.0:
            return -1
        for i in range(rates.size()):
            if rates[i] >= WORTHWHILE * best:
                return <long> i
        return 0

    cdef NativeConnection _take_first(self, double now_s, list expired):
        cdef NativeConnection head, tried
        cdef list hopeless = []
        cdef long num_given_up, i
        while self.waiting.size():
            head = self._head()
            if head.is_abandoned:
                self._take()
                continue
            if head.deadline_s <= now_s:
                expired.append(self._take())
                continue
            num_given_up = self._num_given_up(now_s)
            if num_given_up >= 0:
                for i in range(num_given_up):
                    expired.append(self._take())
                expired.extend(hopeless)
                return self._take()
            for i in range(min(<long> self.waiting.size(), <long> MAX_LOOKED_AT)):
                hopeless.append(self._take())
        if not hopeless:
            return None
        tried = hopeless[0]
        for head in hopeless:
            if head.deadline_s > tried.deadline_s:
                tried = head
        hopeless.remove(tried)
        expired.extend(hopeless)
        return tried

    def pop_batch(self, double now_s, long num_free=1):
        """Return the requests to run now, or None; those that cannot be in time get their answer here.

        Of so many free workers, each gets its part of what waits.
        """
        cdef long most = self.max_batch_rows
        if num_free > 1:
            most = min(most, self._padded((self.num_waiting_rows + num_free - 1) // num_free))
        cdef list expired = [], taken
        cdef NativeConnection first = self._take_first(now_s, expired), one
        cdef long num_rows
        cdef double deadline_s, full_s
        cdef str closed = "queue-empty"
        for one in expired:
            self._note_expired()
            self._expire(one, now_s)
        if first is None:
            return None
        taken, num_rows, deadline_s = [first], first.infer.num_rows, first.deadline_s
        full_s = now_s + self._predict(self.max_batch_rows)
        while self.waiting.size():
            one = self._head()
            if one.is_abandoned:
                self._take()
                continue
            if num_rows + one.infer.num_rows > most:
                closed = "full" if num_rows + one.infer.num_rows > self.max_batch_rows else "shared"
                break
            deadline_s = min(deadline_s, one.deadline_s)
            if full_s > deadline_s and now_s + self._predict(num_rows + one.infer.num_rows) > deadline_s:
                closed = "deadline"
                break
            taken.append(self._take())
            num_rows += one.infer.num_rows
        self.num_batches += 1
        self.num_batched += len(taken)
        self.mean_rows += SIZE_SMOOTHING * (num_rows - self.mean_rows)
        self.caution -= min(CAUTION_LOST * len(taken), 1.0) * self.caution
        batch = NativeBatch()
        batch.connections, batch.num_rows, batch.closed = taken, num_rows, closed
        batch.num_padded = self._padded(num_rows)
        for one in taken:
            batch.serials.push_back(one.serial)
            batch.rows.push_back(one.infer.num_rows)
            batch.arrived_s.push_back(one.arrived_s)
        return batch

    @property
    def head_arrived_s(self):
        """When the oldest of those that wait came."""
        return self._head().arrived_s if self.waiting.size() else 0.0

    def place(self, NativeBatch batch, arena, size_t offset):
        """Write the rows of a batch into memory, the last one again and again up to the padded size."""
        cdef Py_buffer view
        cdef NativeConnection one
        cdef size_t row_bytes = <size_t> self.input.row_elements * item_bytes(self.input.kind), size
        cdef char *to
        cdef long i
        PyObject_GetBuffer(arena, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            if offset + row_bytes * <size_t> batch.num_padded > <size_t> view.len:
                raise MemoryError
            to = <char *> view.buf + offset
            for one in batch.connections:
                memcpy(to, one.infer.data, one.infer.data_bytes)
                to += one.infer.data_bytes
            for i in range(batch.num_padded - batch.num_rows):
                memcpy(to, to - row_bytes, row_bytes)
                to += row_bytes
        finally:
            PyBuffer_Release(&view)

    @property
    def row_bytes(self):
        """Of one row in memory."""
        return <size_t> self.input.row_elements * item_bytes(self.input.kind)

    def finish(self, NativeBatch batch, arena, offsets, double started_s, double now_s):
        """Answer every request of a batch from the outputs, which begin at `offsets` in `arena`."""
        cdef Py_buffer view
        cdef NativeConnection one
        cdef vector[const char *] rows
        cdef string text
        cdef size_t i, at, end
        self.last_s = now_s
        PyObject_GetBuffer(arena, &view, PyBUF_SIMPLE)
        try:
            for i in range(self.outputs.size()):
                end = <size_t> self.outputs[i].row_elements * item_bytes(self.outputs[i].kind) * <size_t> batch.num_padded
                if <size_t> offsets[i] + end > <size_t> view.len:
                    raise MemoryError
                rows.push_back(<const char *> view.buf + <size_t> offsets[i])
            for at in range(batch.serials.size()):
                self._count(self.queues, started_s - batch.arrived_s[at])
                self.queue_s += started_s - batch.arrived_s[at]
                one = batch._open(at)
                if one is not None:
                    one.is_answered = True
                    write_answer(text, self.before, self.outputs, rows, one.infer, self.front.is_closing)
                    self.num_ok += 1
                    self.num_ok_rows += batch.rows[at]
                    self._count(self.totals, now_s - batch.arrived_s[at])
                    self.total_s += now_s - batch.arrived_s[at]
                    self.front._send(one, text.data(), text.size())
                    self.front._answered(one, not self.front.is_closing)
                for i in range(rows.size()):
                    rows[i] += <size_t> (batch.rows[at] * self.outputs[i].row_elements) * item_bytes(self.outputs[i].kind)
        finally:
            PyBuffer_Release(&view)

    cdef void _note_expired(self) noexcept:
        self.num_expired += 1
        self.caution += CAUTION_GAINED * (1 - self.caution)

    cdef void _count(self, vector[long] &counts, double seconds) noexcept:
        cdef size_t at = 0
        while at < self.edges.size() and self.edges[at] < seconds:
            at += 1
        counts[at] += 1

    def expire(self, double now_s, batches):
        """Answer those whose deadline has passed, waiting or running; return the next deadline, or None."""
        cdef deque[PyObject *] kept
        cdef NativeConnection one
        cdef NativeBatch batch
        cdef size_t at
        cdef double earliest_s = 0.0
        while self.waiting.size():
            one = self._take()
            if one.is_abandoned:
                continue
            if one.deadline_s <= now_s:
                self._note_expired()
                self._expire(one, now_s)
                continue
            if earliest_s == 0.0 or one.deadline_s < earliest_s:
                earliest_s = one.deadline_s
            Py_INCREF(one)
            kept.push_back(<PyObject *> one)
        while kept.size():
            one = <NativeConnection> kept.front()
            self.num_waiting_rows += one.infer.num_rows
            self.waiting.push_back(kept.front())
            kept.pop_front()
        for batch in batches:
            for at in range(batch.serials.size()):
                one = batch._open(at)
                if one is None:
                    continue
                if one.deadline_s <= now_s:
                    self._expire(one, now_s)
                elif earliest_s == 0.0 or one.deadline_s < earliest_s:
                    earliest_s = one.deadline_s
        return earliest_s or None

    def take_deadline(self):
        """Return the earliest deadline of those that came since the last call, or None."""
        earliest_s, self.earliest_s = self.earliest_s, 0.0
        return earliest_s or None

    def release(self, NativeBatch batch):
        """Return the connections of a batch that still wait for an answer; the reference gives it."""
        cdef size_t at
        opened = [batch._open(at) for at in range(batch.serials.size())]
        return [one for one in opened if one is not None]

    def drain(self):
        """Take out everything, and return the connections that still wait for an answer."""
        cdef list left = []
        cdef NativeConnection one
        while self.waiting.size():
            one = self._take()
            if not one.is_abandoned:
                left.append(one)
        return left

    def take_counts(self):
        """Return what was counted since the last call: histograms as (bucket, count) and sums."""
        cdef size_t i
        totals = [(i, self.totals[i]) for i in range(self.totals.size()) if self.totals[i]]
        queues = [(i, self.queues[i]) for i in range(self.queues.size()) if self.queues[i]]
        counts = (totals, self.total_s, queues, self.queue_s, self.num_ok, self.num_ok_rows, self.num_overloaded,
                  self.num_late, self.failed_s, self.last_s)
        for i in range(self.totals.size()):
            self.totals[i] = self.queues[i] = 0
        self.total_s = self.queue_s = self.failed_s = 0.0
        self.num_ok = self.num_ok_rows = self.num_overloaded = self.num_late = 0
        return counts


cdef class Front:
    """All native connections. Everything happens on the event loop, in `turn`."""

    cdef readonly object owner
    cdef int epoll
    cdef epoll_event events[MAX_EVENTS]
    cdef int num_events, at_event
    cdef dict connections, routes, grants
    cdef list touched, resumed
    cdef set listening
    cdef uint64_t next_number
    cdef double header_timeout_s, body_timeout_s, keep_alive_s
    cdef int64_t max_body_bytes
    cdef size_t max_head_bytes
    cdef bytes too_busy, timed_out
    cdef public bint is_closing, needs_grant
    # the backlog, as in serve.backlog
    cdef double began_s, ended_s, wait_s
    cdef bint is_in_turn

    def __cinit__(self, owner, *, double header_timeout_s, double body_timeout_s, double keep_alive_s,
                  int64_t max_body_bytes, size_t max_header_bytes, bytes too_busy, bytes timed_out):
        self.owner = owner
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError(errno, "epoll_create1")
        self.connections, self.routes, self.grants = {}, {}, {}
        self.touched, self.resumed, self.listening = [], [], set()
        self.header_timeout_s, self.body_timeout_s = header_timeout_s, body_timeout_s
        self.keep_alive_s, self.max_body_bytes = keep_alive_s, max_body_bytes
        self.max_head_bytes = min(max_header_bytes, <size_t> MAX_HEAD_BYTES)
        self.too_busy, self.timed_out = too_busy, timed_out
        self.began_s = self.ended_s = monotonic()

    def __dealloc__(self):
        if self.epoll >= 0:
            close(self.epoll)

    def fileno(self):
        """For the event loop."""
        return self.epoll

    def __len__(self):
        return len(self.connections)

    def set_routes(self, routes):
        """Say which targets are answered from which lines."""
        self.routes = dict(routes)

    def grant(self, NativeConnection connection, double seconds):
        """Let inferences with the API key of an open request pass for a while, if it names just one."""
        if not connection.head.is_plain or connection.head.credential.name.size == 0:
            return
        if len(self.grants) >= MAX_GRANTS:
            self.grants.clear()
        self.grants[self._credential(connection)] = monotonic() + seconds

    cdef bytes _credential(self, NativeConnection connection):
        cdef Header *header = &connection.head.credential
        return header.name.at[:1].lower() + header.value.at[:header.value.size]

    cdef bint _is_granted(self, NativeConnection connection):
        cdef double until_s
        if not self.needs_grant:
            return True
        if not connection.head.is_plain or connection.head.credential.name.size == 0:
            return False
        until_s = self.grants.get(self._credential(connection), 0.0)
        return monotonic() < until_s

    def listen(self, int descriptor):
        """Accept connections from a listening socket, which stays the caller's."""
        self._register(descriptor, LISTENING | <uint64_t> descriptor, EPOLLIN)
        self.listening.add(descriptor)

    def unlisten(self, int descriptor):
        """Accept no more from it."""
        if descriptor in self.listening:
            self.listening.discard(descriptor)
            epoll_ctl(self.epoll, EPOLL_CTL_DEL, descriptor, NULL)

    cdef int _register(self, int descriptor, uint64_t number, uint32_t events) except -1:
        cdef epoll_event event
        event.events = events
        event.data.u64 = number
        if epoll_ctl(self.epoll, EPOLL_CTL_ADD, descriptor, &event) < 0:
            raise OSError(errno, "epoll_ctl")

    # --- a turn of the event loop

    def turn(self):
        """Read what is ready, a chunk at most, and tell the lines that have something new; return if there is more."""
        cdef int end
        cdef Line line
        if self.at_event >= self.num_events and not self.resumed:
            self._harvest()
        if self.resumed:
            resumed, self.resumed = self.resumed[:CHUNK], self.resumed[CHUNK:]
            for connection in resumed:
                self._look(<NativeConnection> connection)
        end = min(self.at_event + CHUNK, self.num_events)
        while self.at_event < end:
            self.at_event += 1
            self._handle(&self.events[self.at_event - 1])
        self._tell()
        return self.at_event < self.num_events or len(self.resumed) > 0

    cdef int _tell(self) except -1:
        cdef Line line
        while self.touched:
            touched, self.touched = self.touched, []
            for line in touched:
                line.is_touched = False
            for line in touched:
                line.owner.on_news()

    cdef int _harvest(self) except -1:
        cdef double now_s = monotonic(), turn_s = now_s - self.began_s
        self.wait_s = turn_s if now_s - self.ended_s < IDLE_S and turn_s > NEGLIGIBLE_S else 0.0
        self.began_s = now_s
        self.at_event = 0
        self.num_events = max(epoll_wait(self.epoll, self.events, MAX_EVENTS, 0), 0)

    def end_turn(self):
        """Note that all that was ready has been handed out; to be called after a turn, before the loop sleeps."""
        self.ended_s = monotonic()

    cdef int _handle(self, epoll_event *event) except -1:
        if event.data.u64 & LISTENING:
            self._accept(<int> (event.data.u64 & ~LISTENING))
            return 0
        cdef NativeConnection connection = self.connections.get(event.data.u64)
        if connection is None:
            return 0
        if event.events & (EPOLLERR | EPOLLHUP):
            self._drop(connection)
            return 0
        if event.events & EPOLLOUT and connection.unsent is not None:
            self._flush(connection)
            if connection.state == CLOSED:
                return 0
        if event.events & (EPOLLIN | EPOLLRDHUP):
            if connection.state == WAITING:
                if event.events & EPOLLRDHUP:
                    self._drop(connection)
                else:
                    connection.is_told = True
            elif connection.unsent is not None:
                connection.is_told = True
            else:
                self._look(connection)
                if event.events & EPOLLRDHUP:
                    self._drop(connection)
        return 0

    cdef int _accept(self, int listening) except -1:
        cdef int i, descriptor, one = 1
        cdef NativeConnection connection
        for i in range(MAX_ACCEPTS):
            descriptor = accept4(listening, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)
            if descriptor < 0:
                if errno in (EINTR, ECONNABORTED):
                    continue
                if errno in (EMFILE, ENFILE, ENOBUFS, ENOMEM):
                    self.owner.on_exhausted(listening)
                return 0
            setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &one, sizeof(one))
            connection = NativeConnection()
            connection.front, connection.descriptor = self, descriptor
            if not self.owner.connections.add(connection):
                connection.state = CLOSED
                self.owner.take_over(descriptor, b"", None)
                continue
            self.next_number += 1
            connection.number = self.next_number
            connection.wait_until_s = monotonic() + self.header_timeout_s
            self.connections[connection.number] = connection
            try:
                self._register(descriptor, connection.number, EPOLLIN | EPOLLOUT | EPOLLRDHUP | <uint32_t> EPOLLET)
            except OSError:
                self._drop(connection)
        return 0

    # --- reading

    cdef int _look(self, NativeConnection connection) except -1:
        """Read what has come, and begin with the request if it is whole."""
        cdef ssize_t size
        cdef size_t room
        cdef uint64_t serial
        if connection.state != READING or connection.unsent is not None:
            return 0
        connection.is_told = False
        while True:
            if connection.capacity - connection.size < <size_t> (FIRST_BYTES // 2) and not self._grow(connection):
                self._drop(connection)
                return 0
            room = connection.capacity - connection.size
            size = recv(connection.descriptor, connection.buffer + connection.size, room, 0)
            if size < 0:
                if errno == EINTR:
                    continue
                if errno != EAGAIN:
                    self._drop(connection)
                return 0
            if size == 0:
                self._drop(connection)
                return 0
            if connection.size == 0:
                connection.is_in_body = False
                connection.wait_until_s = monotonic() + self.header_timeout_s
            connection.size += <size_t> size
            serial = connection.serial
            self._begin(connection)
            if <size_t> size < room:
                return 0
            if connection.state != READING or connection.serial != serial:  # others come first; there may be more
                connection.is_told = True
                if connection.state == READING and connection.unsent is None:
                    self._resume(connection)
                return 0

    cdef bint _grow(self, NativeConnection connection) noexcept:
        cdef size_t capacity = max(<size_t> FIRST_BYTES, 2 * connection.capacity)
        cdef char *grown = <char *> realloc(connection.buffer, capacity)
        if grown == NULL:
            return False
        connection.buffer = grown
        connection.capacity = capacity
        return True

    cdef int _begin(self, NativeConnection connection) except -1:
        cdef Verdict verdict = parse_head(connection.buffer, connection.size, self.max_head_bytes,
                                          connection.head)
        cdef size_t wanted
        if verdict == Verdict.INCOMPLETE:
            return 0
        if verdict == Verdict.FINE:
            if connection.head.content_length > min(self.max_body_bytes, <int64_t> MAX_REQUEST_BYTES):
                verdict = Verdict.NOT_MINE
            else:
                wanted = connection.head.num_bytes + <size_t> connection.head.content_length
                if connection.size < wanted and not (
                    connection.head.content_length > MAX_UNCHECKED_BYTES and not self._is_granted(connection)
                ):
                    if not connection.is_in_body:
                        connection.is_in_body = True
                        connection.wait_until_s = monotonic() + self.body_timeout_s
                    return 0
                if connection.size != wanted:
                    verdict = Verdict.NOT_MINE  # a client that does not wait for its answers
        if verdict != Verdict.FINE:
            self._hand_over(connection)
            return 0
        connection.state = WAITING
        connection.serial += 1
        connection.wait_until_s = 0.0
        connection.waited_s = self.wait_s
        connection.is_answered = connection.is_abandoned = False
        if not self._infer(connection):
            self.owner.on_request(connection, connection.waited_s)
        return 0

    cdef int _infer(self, NativeConnection connection) except -1:
        """Take a plain inference in, and return whether it was one."""
        cdef Head *head = &connection.head
        if not head.is_plain or not head.method.is_exactly(POST) or head.content_length == 0:
            return 0
        target = PyBytes_FromStringAndSize(head.target.at, <Py_ssize_t> head.target.size)
        cdef Line line = self.routes.get(target)
        if line is None or not line.is_open:
            return 0
        if not self._is_granted(connection):
            return 0
        cdef double asked_s, timeout_s = line.timeout_s
        if head.timeout_ms > 0:
            timeout_s = head.timeout_ms / 1e3
        if connection.waited_s >= MAX_WAITED_SHARE * timeout_s and connection.waited_s > 0.0:
            line._too_busy(connection)
            return 1
        line.input.max_rows = line.max_batch_rows
        if not read_infer(connection.buffer + head.num_bytes, <size_t> head.content_length, head.json_length, line.input,
                          connection.data, connection.infer):
            return 0
        if connection.infer.timeout_us > 0:
            asked_s = min(connection.infer.timeout_us, MAX_TIMEOUT_US) * 1e-6
            timeout_s = min(timeout_s, asked_s) if head.timeout_ms > 0 else asked_s
        cdef double now_s = monotonic()
        connection.timeout_s = timeout_s
        connection.deadline_s = now_s + timeout_s - connection.waited_s
        line._admit(connection, now_s)
        return 1

    # --- writing

    cdef int _answer(self, NativeConnection connection, bytes text, bint keeps_alive) except -1:
        """Write an answer that was put into words by the reference."""
        if connection.state != WAITING:
            return 0
        if keeps_alive and self.is_closing:
            text, keeps_alive = text.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n", 1), False
        self._send(connection, PyBytes_AS_STRING(text), <size_t> PyBytes_GET_SIZE(text))
        self._answered(connection, keeps_alive)

    cdef int _send(self, NativeConnection connection, const char *text, size_t size) except -1:
        cdef ssize_t sent
        if connection.state != WAITING:
            return 0
        while True:
            sent = send(connection.descriptor, text, size, MSG_NOSIGNAL)
            if sent >= 0 or errno != EINTR:
                break
        if sent < 0 and errno != EAGAIN:
            self._drop(connection)
            return 0
        sent = max(sent, <ssize_t> 0)
        if <size_t> sent < size:
            connection.unsent = PyBytes_FromStringAndSize(text + sent, <Py_ssize_t> size - sent)
            connection.num_sent = 0

    cdef int _answered(self, NativeConnection connection, bint keeps_alive) except -1:
        """Be ready for the client's next request."""
        if connection.state != WAITING:
            return 0
        connection.state, connection.size = READING, 0
        if connection.data.capacity() > 4 * FIRST_BYTES:
            connection.data.clear()
            connection.data.shrink_to_fit()
        if connection.capacity > 4 * FIRST_BYTES:
            free(connection.buffer)
            connection.buffer = NULL
            connection.capacity = 0
        if connection.unsent is not None:
            connection.is_closing = not keeps_alive
            connection.wait_until_s = monotonic() + self.body_timeout_s
            return 0
        if not keeps_alive:
            self._drop(connection)
            return 0
        connection.wait_until_s = monotonic() + self.keep_alive_s
        self._resume(connection)

    cdef int _resume(self, NativeConnection connection) except -1:
        if connection.is_told:
            if not self.resumed:
                self.owner.schedule()
            self.resumed.append(connection)

    cdef int _flush(self, NativeConnection connection) except -1:
        """Go on writing to a client that had not taken its answer."""
        cdef bytes unsent = connection.unsent
        cdef const char *text = PyBytes_AS_STRING(unsent)
        cdef size_t size = <size_t> PyBytes_GET_SIZE(unsent)
        cdef ssize_t sent
        while connection.num_sent < size:
            sent = send(connection.descriptor, text + connection.num_sent, size - connection.num_sent, MSG_NOSIGNAL)
            if sent < 0:
                if errno == EINTR:
                    continue
                if errno != EAGAIN:
                    self._drop(connection)
                return 0
            connection.num_sent += <size_t> sent
        connection.unsent = None
        if connection.is_closing or self.is_closing:
            self._drop(connection)
            return 0
        connection.wait_until_s = monotonic() + self.keep_alive_s
        self._resume(connection)

    # --- the end of a connection

    cdef int _forget(self, NativeConnection connection) except -1:
        """Take a connection out; its descriptor stays open, and its place among the connections is kept."""
        epoll_ctl(self.epoll, EPOLL_CTL_DEL, connection.descriptor, NULL)
        connection.state = CLOSED
        self.connections.pop(connection.number, None)

    def _drop(self, NativeConnection connection):
        """Hang up, and tell those who work for this client."""
        if connection.state == CLOSED:
            return
        self._forget(connection)
        self.owner.connections.discard(connection)
        close(connection.descriptor)
        connection.is_abandoned = True
        connection.unsent = None
        exchange, connection.exchange = connection.exchange, None
        if exchange is not None:
            exchange.abandon()

    cdef int _hand_over(self, NativeConnection connection) except -1:
        """Give a connection to the reference for good, with what was read of it."""
        if connection.state == CLOSED:
            return 0
        self._forget(connection)
        data = PyBytes_FromStringAndSize(connection.buffer, <Py_ssize_t> connection.size)
        self.owner.take_over(connection.descriptor, data, connection)

    def detach(self, NativeConnection connection):
        """Give up a connection whose answer the reference sends piece by piece; return its descriptor."""
        connection.exchange = None
        self._forget(connection)
        return connection.descriptor

    def sweep(self):
        """Hang up on clients that have not taken their next step in time."""
        cdef double now_s = monotonic()
        cdef NativeConnection connection
        cdef bytes text = self.timed_out
        for connection in tuple(self.connections.values()):
            if connection.wait_until_s == 0.0 or connection.wait_until_s > now_s:
                continue
            if connection.state == READING and connection.unsent is None:
                self._look(connection)  # what lies in the kernel's buffer by now is in time
                if connection.state != READING or connection.wait_until_s > now_s:
                    continue
                if connection.size:
                    send(connection.descriptor, PyBytes_AS_STRING(text), <size_t> PyBytes_GET_SIZE(text), MSG_NOSIGNAL)
            self._drop(connection)
        self._tell()
