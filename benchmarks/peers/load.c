/* A load generator that costs little: HTTP/1.1 over keep-alive connections, one thread, epoll.
 *
 * Python spends about as long on a request as a fast server does, and shares its cores; this spends little.
 *
 *   load closed PORT REQUEST OUT CONNECTIONS SECONDS
 *   load open   PORT REQUEST OUT CONNECTIONS TIMEOUT_S SCHEDULE
 *
 * REQUEST is a file with a whole request. Closed: each connection sends again as soon as it has its answer. Open: SCHEDULE
 * is a file of doubles, the seconds at which requests are due, whatever the server does; CONNECTIONS is how many may be
 * open at once, and a request that has no answer TIMEOUT_S after it was due is given up, and its connection with it.
 * OUT gets a struct record for every request, in order of `due_s`. Stdout gets the CPU seconds that were spent here.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define BUFFER_BYTES 16384
#define LOOK_S 0.005 /* how often requests are looked at that may have to be given up */
#define GIVEN_UP 0
#define BROKEN (-1)

struct record {
    double due_s;   /* when it was to be sent */
    double seen_s;  /* when this program got to it: the difference is the generator's own lag */
    double sent_s;  /* when a connection was there for it */
    double done_s;  /* when the whole answer was there, or when it was given up */
    int64_t status; /* of HTTP; GIVEN_UP or BROKEN */
};

enum state { CLOSED, CONNECTING, IDLE, BUSY };

struct connection {
    enum state state;
    int fd;
    size_t num_bytes;
    size_t request;
    char buffer[BUFFER_BYTES + 1];
};

static struct record *records;
static size_t num_records, max_records;
static struct connection *connections;
static int max_connections, num_connecting, epoll_fd;
static int *idle, num_idle;         /* a stack: the one used last is the warmest */
static int *closed, num_closed;
static char *request;
static size_t request_bytes;
static size_t first_unsent;         /* records from here to num_records wait for a connection */
static size_t num_unfinished;
static struct sockaddr_in address;
static double started_s, close_due_s;
static int is_open_loop;

static double now_s(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec - started_s;
}

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static char *read_file(const char *path, size_t *num_bytes) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(path);
    fseek(file, 0, SEEK_END);
    *num_bytes = (size_t)ftell(file);
    rewind(file);
    char *bytes = malloc(*num_bytes + 1);
    if (!bytes || fread(bytes, 1, *num_bytes, file) != *num_bytes) fail(path);
    bytes[*num_bytes] = 0;
    fclose(file);
    return bytes;
}

static size_t add_record(double due_s, double seen_s) {
    if (num_records == max_records) {
        max_records = max_records ? 2 * max_records : 1 << 16;
        records = realloc(records, max_records * sizeof *records);
        if (!records) fail("realloc");
    }
    records[num_records] = (struct record){.due_s = due_s, .seen_s = seen_s};
    num_unfinished++;
    return num_records++;
}

static void finish(size_t number, int64_t status) {
    records[number].done_s = now_s();
    records[number].status = status;
    num_unfinished--;
}

static void drop(int number) {
    struct connection *connection = &connections[number];
    if (connection->state == CONNECTING) num_connecting--;
    if (connection->state == IDLE)
        for (int i = 0; i < num_idle; i++)
            if (idle[i] == number) {
                idle[i] = idle[--num_idle];
                break;
            }
    close(connection->fd);
    connection->state = CLOSED;
    closed[num_closed++] = number;
}

static void lose(int number, int64_t status) {
    if (connections[number].state == BUSY) finish(connections[number].request, status);
    drop(number);
}

static void become_idle(int number) {
    connections[number].state = IDLE;
    connections[number].num_bytes = 0;
    idle[num_idle++] = number;
}

static void dial(void) {
    int number = closed[--num_closed];
    struct connection *connection = &connections[number];
    int one = 1;
    connection->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (connection->fd < 0) fail("socket");
    setsockopt(connection->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    connection->num_bytes = 0;
    int result = connect(connection->fd, (struct sockaddr *)&address, sizeof address);
    if (result < 0 && errno != EINPROGRESS) {
        close(connection->fd);
        connection->state = CLOSED;
        closed[num_closed++] = number;
        return;
    }
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLET, .data.u32 = (uint32_t)number};
    if (epoll_ctl(epoll_fd, EPOLL_CTL_ADD, connection->fd, &event) < 0) fail("epoll_ctl");
    connection->state = CONNECTING;
    num_connecting++;
}

/* Send what waits, on idle connections first, and dial for the rest. */
static void send_waiting(void) {
    while (first_unsent < num_records) {
        if (records[first_unsent].done_s > 0) { /* given up before a connection was there */
            first_unsent++;
            continue;
        }
        if (!num_idle) break;
        int number = idle[--num_idle];
        struct connection *connection = &connections[number];
        connection->state = BUSY;
        connection->request = first_unsent;
        records[first_unsent++].sent_s = now_s();
        if (send(connection->fd, request, request_bytes, MSG_NOSIGNAL) != (ssize_t)request_bytes) lose(number, BROKEN);
    }
    size_t num_waiting = num_records - first_unsent;
    while (num_closed && (size_t)num_connecting < num_waiting) {
        int before = num_closed;
        dial();
        if (num_closed == before) break; /* refused */
    }
}

static int64_t answered_status(struct connection *connection, int *closes) {
    connection->buffer[connection->num_bytes] = 0;
    char *end = strstr(connection->buffer, "\r\n\r\n");
    if (!end) return 0;
    size_t head_bytes = (size_t)(end - connection->buffer) + 4;
    *end = 0;
    char *length = strcasestr(connection->buffer, "\r\ncontent-length:");
    int is_chunked = strcasestr(connection->buffer, "\r\ntransfer-encoding: chunked") != NULL;
    *closes = strcasestr(connection->buffer, "\r\nconnection: close") != NULL;
    int64_t status = atoi(connection->buffer + 9);
    *end = '\r';
    if (is_chunked)
        return connection->num_bytes >= head_bytes + 5 &&
                       !memcmp(connection->buffer + connection->num_bytes - 5, "0\r\n\r\n", 5)
                   ? status
                   : 0;
    size_t body_bytes = length ? strtoul(length + 17, NULL, 10) : 0;
    return connection->num_bytes >= head_bytes + body_bytes ? status : 0;
}

static void read_answer(int number) {
    struct connection *connection = &connections[number];
    for (;;) {
        ssize_t size = recv(connection->fd, connection->buffer + connection->num_bytes,
                            BUFFER_BYTES - connection->num_bytes, 0);
        if (size < 0 && errno == EAGAIN) return;
        if (size <= 0) {
            lose(number, BROKEN);
            return;
        }
        connection->num_bytes += (size_t)size;
        int closes = 0;
        int64_t status = connection->state == BUSY ? answered_status(connection, &closes) : 0;
        if (!status) continue;
        finish(connection->request, status);
        if (closes) {
            drop(number);
            return;
        }
        become_idle(number);
        if (!is_open_loop && now_s() < close_due_s) {
            double now = now_s();
            add_record(now, now);
        }
        send_waiting();
    }
}

static void handle(struct epoll_event *event) {
    int number = (int)event->data.u32;
    struct connection *connection = &connections[number];
    if (connection->state == CLOSED) return;
    if (connection->state == CONNECTING && (event->events & (EPOLLOUT | EPOLLERR | EPOLLHUP))) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(connection->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            drop(number);
            return;
        }
        num_connecting--;
        become_idle(number);
        send_waiting();
    }
    if (connection->state != CLOSED && (event->events & (EPOLLIN | EPOLLERR | EPOLLHUP))) read_answer(number);
}

static void give_up(double timeout_s) {
    double now = now_s();
    for (int i = 0; i < max_connections; i++)
        if (connections[i].state == BUSY && records[connections[i].request].due_s + timeout_s <= now) lose(i, GIVEN_UP);
    for (size_t i = first_unsent; i < num_records && records[i].due_s + timeout_s <= now; i++)
        if (!(records[i].done_s > 0)) finish(i, GIVEN_UP);
    send_waiting();
}

static void wait_and_handle(double until_s) {
    struct epoll_event events[256];
    double left_s = until_s - now_s();
    if (left_s < 0) left_s = 0;
    struct timespec timeout = {.tv_sec = (time_t)left_s, .tv_nsec = (long)((left_s - (double)(time_t)left_s) * 1e9)};
    int num_events = epoll_pwait2(epoll_fd, events, 256, &timeout, NULL);
    if (num_events < 0 && errno != EINTR) fail("epoll_pwait2");
    for (int i = 0; i < num_events; i++) handle(&events[i]);
}

static void run_closed(double seconds) {
    close_due_s = seconds;
    for (int i = 0; i < max_connections; i++) add_record(0, 0);
    send_waiting();
    while (now_s() < seconds) {
        wait_and_handle(now_s() + 0.05);
        /* Connections that the server has closed are dialled again, each for a request of its own. */
        double now = now_s();
        for (size_t i = num_unfinished; i < (size_t)max_connections && now < seconds; i++) add_record(now, now);
        send_waiting();
    }
}

static void run_open(const double *due_s, size_t num_due, double timeout_s) {
    double look_s = 0;
    size_t next = 0;
    while (next < num_due || num_unfinished) {
        double now = now_s();
        for (; next < num_due && due_s[next] <= now; next++) add_record(due_s[next], now);
        send_waiting();
        if (now >= look_s) {
            give_up(timeout_s);
            look_s = now + LOOK_S;
        }
        wait_and_handle(next < num_due && due_s[next] < look_s ? due_s[next] : look_s);
    }
}

int main(int argc, char **argv) {
    if (argc < 7) {
        fprintf(stderr, "usage: load closed|open PORT REQUEST OUT CONNECTIONS SECONDS|TIMEOUT_S [SCHEDULE]\n");
        return 2;
    }
    is_open_loop = !strcmp(argv[1], "open");
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[2]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    request = read_file(argv[3], &request_bytes);
    max_connections = atoi(argv[5]);
    connections = calloc((size_t)max_connections, sizeof *connections);
    idle = malloc((size_t)max_connections * sizeof *idle);
    closed = malloc((size_t)max_connections * sizeof *closed);
    if (!connections || !idle || !closed) fail("malloc");
    for (int i = 0; i < max_connections; i++) closed[num_closed++] = i;
    epoll_fd = epoll_create1(0);
    prctl(PR_SET_TIMERSLACK, 1000UL);
    setpriority(PRIO_PROCESS, 0, -10); /* where that is allowed: a clock that waits for the servers measures nothing */
    started_s = 0;
    started_s = now_s();
    if (is_open_loop) {
        size_t num_bytes;
        double *due_s = (double *)read_file(argv[7], &num_bytes);
        run_open(due_s, num_bytes / sizeof *due_s, atof(argv[6]));
    } else {
        run_closed(atof(argv[6]));
    }
    FILE *out = fopen(argv[4], "wb");
    if (!out || fwrite(records, sizeof *records, num_records, out) != num_records || fclose(out)) fail(argv[4]);
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    printf("%.6f\n", (double)usage.ru_utime.tv_sec + 1e-6 * (double)usage.ru_utime.tv_usec +
                         (double)usage.ru_stime.tv_sec + 1e-6 * (double)usage.ru_stime.tv_usec);
    return 0;
}
